"""From a place in the run to a training sample.

A pool that is pasted from has the data's categories by then: they are matched by name, in
`data.pool`.
"""

from __future__ import annotations

import numpy as np

from bsgal_paste import CopyPaste, PasteResult
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data.crop import RandomCrop
from bsgal_train.data.draw_table import DrawTable
from bsgal_train.data.real_crops import RealCrop, RealCrops
from bsgal_train.data.samples import (
    NOT_ANNOTATED,
    REAL,
    LabelledImage,
    PastedInstance,
    TrainingSample,
    labelled_image,
)
from bsgal_train.errors import CorruptImageError, TooManyCorruptImagesError

__all__ = ["TrainingMapper"]

MAX_REPLACEMENTS = 10

# Streams of random numbers of one sample, so that none depends on how much another draws.
_CROP, _PASTE, _REPLACEMENT = range(3)


class TrainingMapper:
    """Make the training sample at a position of the run.

    A sample is a pure function of the arguments of this class, the position and the image index,
    and of the weights that were published for the position where there is a draw table: the
    number of loader processes, or where a run was resumed, changes nothing.

    Args:
        annotations: The training images.
        crop: How a crop of a real image is drawn.
        seed: Of everything random.
        copy_paste: Pastes pool instances into the crop; None pastes nothing.
        draw_table: Told of each position before something is pasted; the sampler of `copy_paste`
            asks it for weights (`instance_weights=draw_table.current`).

    Raises:
        ValueError: The pool of `copy_paste` has categories that the annotations lack.
    """

    def __init__(
        self,
        annotations: LvisAnnotations,
        crop: RandomCrop,
        *,
        seed: int,
        copy_paste: CopyPaste | None = None,
        draw_table: DrawTable | None = None,
    ) -> None:
        self._crops = RealCrops(annotations, crop)
        self._annotations = annotations
        self._seed = seed
        self._copy_paste = copy_paste
        self._draw_table = draw_table
        pool_ids = [] if copy_paste is None else copy_paste.pool.category_ids.tolist()
        unknown = [i for i in pool_ids if i not in annotations.class_index_of]
        if unknown:
            raise ValueError(
                f"the pool has {len(unknown)} categories that {annotations.path} lacks (ids "
                f"{unknown[:5]}); match it first: pool.match(annotations.categories)"
            )

    def __call__(self, position: int, image_index: int) -> TrainingSample:
        """Read, crop and paste.

        An image that cannot be read is replaced by another one, drawn uniformly.

        Raises:
            TooManyCorruptImagesError: The replacements cannot be read either.
            DrawTableError: The weights for the position are not there.
        """
        crop, skipped = self._read(position, image_index)
        original = crop.labelled()
        if self._copy_paste is None:
            return TrainingSample(position, original, original, (), tuple(skipped))
        if self._draw_table is not None:
            self._draw_table.go_to(position)
        result = self._copy_paste(crop.content, self._rng(position, _PASTE))
        skipped += [
            f"pool instance {removed.instance_id} cannot be read"
            for removed in result.removed
            if removed.reason == "corrupt"
        ]
        if not result.n_pasted:
            return TrainingSample(position, original, original, (), tuple(skipped))
        pasted, pastes = self._pasted(crop, result)
        return TrainingSample(position, pasted, original, pastes, tuple(skipped))

    def _read(self, position: int, image_index: int) -> tuple[RealCrop, list[str]]:
        skipped: list[str] = []
        rng = self._rng(position, _CROP)
        replacements = self._rng(position, _REPLACEMENT)
        while True:
            try:
                crop = self._crops.draw(image_index, rng)
            except CorruptImageError as error:
                skipped.append(str(error))
                if len(skipped) > MAX_REPLACEMENTS:
                    listed = "\n  ".join(skipped)
                    raise TooManyCorruptImagesError(
                        f"{len(skipped)} images in a row cannot be read:\n  {listed}"
                    ) from error
                image_index = int(replacements.integers(len(self._annotations.images)))
            else:
                return crop, skipped

    def _rng(self, position: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, position, stream])

    def _pasted(
        self, crop: RealCrop, result: PasteResult
    ) -> tuple[LabelledImage, tuple[PastedInstance, ...]]:
        class_index_of = self._annotations.class_index_of
        class_indices = [class_index_of[i] for i in result.category_ids.tolist()]
        source: list[int] = []
        pastes: list[PastedInstance] = []
        for i, is_pasted in enumerate(result.is_pasted):
            source.append(len(pastes) if is_pasted else REAL)
            if is_pasted:
                category = self._annotations.categories[class_indices[i]]
                pastes.append(
                    PastedInstance(
                        instance_id=str(result.instance_ids[i]),
                        category_id=category.category_id,
                        class_index=category.class_index,
                        frequency=category.frequency,
                        visible_frac=float(result.visible_frac[i]),
                    )
                )
        # Where an index is -1, a pasted object has no annotation.
        ids = np.append(crop.annotation_ids, NOT_ANNOTATED)[result.source_index]
        pasted = labelled_image(
            crop.record,
            result.image,
            result.masks,
            result.boxes_xyxy,
            class_indices=class_indices,
            source=source,
            annotation_ids=ids,
            visible_frac=result.visible_frac,
        )
        return pasted, tuple(pastes)
