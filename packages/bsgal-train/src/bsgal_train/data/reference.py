"""Real images that hold the categories of a batch's pasted objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data.crop import RandomCrop
from bsgal_train.data.mapper import MAX_REPLACEMENTS
from bsgal_train.data.real_crops import RealCrops
from bsgal_train.data.samples import LabelledImage, TrainingSample
from bsgal_train.data.skipped_files import SkippedFiles
from bsgal_train.errors import CorruptImageError, TooManyCorruptImagesError

__all__ = ["ClassMatchedReference"]


class ClassMatchedReference:
    """Draw one real image for each sample of a batch, as the BSGAL recipe does.

    A category is drawn uniformly from those pasted into the sample (each counts once, however
    often it was pasted), failing that from those annotated in it, failing that from all; then an
    image uniformly from the training images that hold the category. It is cropped as training
    images are, so the object may be cut away, and all its objects count.

    Args:
        annotations: The training images.
        crop: How a crop is drawn.
        skipped: Counts the images that cannot be read; None: an own one.

    Attributes:
        drawable: Indices of the classes that are in some image.
        frequencies: Frequency group of every class.
        skipped: See above.
    """

    def __init__(
        self, annotations: LvisAnnotations, crop: RandomCrop, skipped: SkippedFiles | None = None
    ) -> None:
        self._crops = RealCrops(annotations, crop)
        self._image_indices = annotations.image_indices_of_class
        self.drawable = [i for i, images in enumerate(self._image_indices) if len(images)]
        self.frequencies = [category.frequency for category in annotations.categories]
        self.skipped = skipped or SkippedFiles()

    def batch(
        self, samples: Sequence[TrainingSample], rng: np.random.Generator
    ) -> list[LabelledImage]:
        """Draw, read and crop one real image for each sample.

        Returns:
            Images like `TrainingSample.original`.

        Raises:
            TooManyCorruptImagesError: One drawn image after another cannot be read.
        """
        return [self._one(sample, rng) for sample in samples]

    def for_step(self, samples: Sequence[TrainingSample], seed: int) -> list[LabelledImage]:
        """Do as `batch`, each draw a function of `seed` and of the sample's position alone.

        So a sample's real image is the same whichever process of a run holds the sample.
        """
        return [
            self._one(sample, np.random.default_rng([seed, sample.position])) for sample in samples
        ]

    def of_classes(
        self, class_indices: Sequence[int], seed: int, keys: Sequence[int]
    ) -> list[LabelledImage]:
        """Draw, read and crop one real image that holds each class; classes of `drawable` only.

        Each draw is a function of `seed` and of its number in `keys` alone.
        """
        return [
            self._holding([index], np.random.default_rng([seed, key]))
            for index, key in zip(class_indices, keys, strict=True)
        ]

    def _one(self, sample: TrainingSample, rng: np.random.Generator) -> LabelledImage:
        return self._holding(self._choices(sample), rng)

    def _holding(self, choices: Sequence[int], rng: np.random.Generator) -> LabelledImage:
        """Draw one of some classes, then an image that holds it."""
        reasons = []
        for _ in range(1 + MAX_REPLACEMENTS):
            images = self._image_indices[choices[int(rng.integers(len(choices)))]]
            try:
                crop = self._crops.draw(int(images[rng.integers(len(images))]), rng)
            except CorruptImageError as error:
                reasons.append(str(error))
                self.skipped.add(reasons[-1])
            else:
                return crop.labelled()
        raise TooManyCorruptImagesError(
            f"{len(reasons)} reference images in a row cannot be read: "
            f"{', '.join(dict.fromkeys(reasons))}"
        )

    def _choices(self, sample: TrainingSample) -> list[int]:
        """Give the class indices to draw from: of those, all are in some image."""
        pasted = {paste.class_index for paste in sample.pastes}
        own = set(sample.original.class_indices.tolist())
        for candidates in (pasted, own):
            choices = sorted(i for i in candidates if len(self._image_indices[i]))
            if choices:
                return choices
        return self.drawable
