"""Which real image is looked at beside a pasted object: one that holds its class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data.crop import RandomCrop
from bsgal_train.data.mapper import MAX_REPLACEMENTS
from bsgal_train.data.real_crops import RealCrops
from bsgal_train.data.samples import ReferenceImage, TrainingSample
from bsgal_train.errors import CorruptImageError, TooManyCorruptImagesError

__all__ = ["DrawnAhead", "ReferenceDraws"]


class ReferenceDraws:
    """Draw a real image for a sample, as the BSGAL recipe does, or for a class.

    For a sample, a category is drawn uniformly from those pasted into it (each counts once, however
    often it was pasted), failing that from those annotated in it, failing that from all; then an
    image uniformly from the training images that hold the category. It is cropped as training
    images are, so the object may be cut away, and all its objects count. An image that cannot be
    read is drawn again.

    Args:
        annotations: The training images.
        crop: How a crop is drawn.

    Attributes:
        drawable: Indices of the classes that are in some image.
    """

    def __init__(self, annotations: LvisAnnotations, crop: RandomCrop) -> None:
        self._crops = RealCrops(annotations, crop)
        self._image_indices = annotations.image_indices_of_class
        self.drawable = [i for i, images in enumerate(self._image_indices) if len(images)]

    def for_sample(self, sample: TrainingSample, seed: int) -> ReferenceImage:
        """Draw, read and crop one: a function of `seed` and of the sample's position alone.

        Raises:
            TooManyCorruptImagesError: One drawn image after another cannot be read.
        """
        return self._holding(self._choices(sample), seed, sample.position)

    def of_class(self, class_index: int, seed: int, key: int) -> ReferenceImage:
        """Draw, read and crop one that holds a class of `drawable`, by `seed` and `key` alone.

        Raises:
            TooManyCorruptImagesError: One drawn image after another cannot be read.
        """
        return self._holding([class_index], seed, key)

    def _holding(self, choices: Sequence[int], seed: int, key: int) -> ReferenceImage:
        """Draw one of some classes, then an image that holds it."""
        rng = np.random.default_rng([seed, key])
        reasons: list[str] = []
        for _ in range(1 + MAX_REPLACEMENTS):
            images = self._image_indices[choices[int(rng.integers(len(choices)))]]
            try:
                crop = self._crops.draw(int(images[rng.integers(len(images))]), rng)
            except CorruptImageError as error:
                reasons.append(str(error))
            else:
                return ReferenceImage(crop.labelled(), seed, tuple(reasons))
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnAhead:
    """Give samples the real image that their step will ask for, where they are loaded.

    Attributes:
        draws: Of the run.
        seed_of_step: Gives the seed of a step by its number, from 1.
        batch_size: Samples of a step, of all processes together.
        every: Steps between two that ask, from the first step on.
    """

    draws: ReferenceDraws
    seed_of_step: Callable[[int], int]
    batch_size: int
    every: int

    def __call__(self, sample: TrainingSample) -> TrainingSample:
        """Return the sample with its real image, or as it is where its step asks for none."""
        n_before = sample.position // self.batch_size
        if n_before % self.every:
            return sample
        seed = self.seed_of_step(n_before + 1)
        return replace(sample, reference=self.draws.for_sample(sample, seed))
