"""Real images to compare with, as the training process asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.utils.data

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data.crop import RandomCrop
from bsgal_train.data.loaders import data_loader
from bsgal_train.data.reference import ReferenceDraws
from bsgal_train.data.samples import LabelledImage, ReferenceImage, TrainingSample
from bsgal_train.data.skipped_files import SkippedFiles

__all__ = ["ClassMatchedReference"]


class ClassMatchedReference:
    """Give real images that hold certain classes, drawn by `ReferenceDraws`.

    Args:
        annotations: The training images.
        crop: How a crop is drawn.
        skipped: Counts the images that cannot be read; None: an own one.
        n_workers: Loader processes of `of_classes`; 0 loads in this process. The images are the
            same.

    Attributes:
        draws: What the images are drawn by.
        frequencies: Frequency group of every class.
        skipped: See above.
    """

    def __init__(
        self,
        annotations: LvisAnnotations,
        crop: RandomCrop,
        skipped: SkippedFiles | None = None,
        n_workers: int = 0,
    ) -> None:
        self.draws = ReferenceDraws(annotations, crop)
        self.frequencies = [category.frequency for category in annotations.categories]
        self.skipped = skipped or SkippedFiles()
        self._n_workers = n_workers

    @property
    def drawable(self) -> list[int]:
        """Give the indices of the classes that are in some image."""
        return self.draws.drawable

    def for_step(self, samples: Sequence[TrainingSample], seed: int) -> list[LabelledImage]:
        """Return one real image for each sample, a function of `seed` and its position alone.

        So a sample's real image is the same whichever process of a run holds the sample. It is read
        here where it does not come with the sample.

        Raises:
            TooManyCorruptImagesError: One drawn image after another cannot be read.
        """
        found = []
        for sample in samples:
            one = sample.reference
            if one is None or one.seed != seed:
                one = self.draws.for_sample(sample, seed)
                self._count(one)
            found.append(one.image)
        return found

    def of_classes(
        self, class_indices: Sequence[int], seed: int, keys: Sequence[int], batch_size: int
    ) -> Iterator[list[LabelledImage]]:
        """Yield batches of real images that hold one class each; classes of `drawable` only.

        Each draw is a function of `seed` and of its number in `keys` alone.

        Raises:
            TooManyCorruptImagesError: One drawn image after another cannot be read.
        """
        if not class_indices:
            return
        places = range(len(class_indices))
        batches = [list(places[first : first + batch_size]) for first in places[::batch_size]]
        images = _OfClasses(self.draws, class_indices, seed, keys)
        for batch in data_loader(images, self._n_workers, batch_sampler=batches):
            for one in batch:
                self._count(one)
            yield [one.image for one in batch]

    def _count(self, drawn: ReferenceImage) -> None:
        for reason in drawn.skipped:
            self.skipped.add(reason)


class _OfClasses(torch.utils.data.Dataset[ReferenceImage]):
    def __init__(
        self, draws: ReferenceDraws, class_indices: Sequence[int], seed: int, keys: Sequence[int]
    ) -> None:
        self._draws = draws
        self._drawn_by = list(zip(class_indices, keys, strict=True))
        self._seed = seed

    def __getitem__(self, place: int) -> ReferenceImage:
        class_index, key = self._drawn_by[place]
        return self._draws.of_class(class_index, self._seed, key)
