"""Repeat-factor sampling: images with rare categories come more often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bsgal_train.annotations import LvisAnnotations

__all__ = ["RepeatFactorSampler", "compute_repeat_factors"]


def compute_repeat_factors(
    annotations: LvisAnnotations, threshold: float = 0.001
) -> npt.NDArray[np.float64]:
    """Compute how often each image comes in one pass, from all annotations as they are.

    A category in a share f of the images has the factor max(1, sqrt(t / f)); an image has the
    largest factor of its categories, and 1 without any (LVIS, arXiv 1908.03195, appendix B.2).

    Args:
        annotations: The training images.
        threshold: t, the share of images below which a category is repeated; 0 repeats nothing.

    Returns:
        `(n_images,)`, each at least 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a share of the images, in [0, 1], got {threshold}")
    n_images = len(annotations.images)
    factors = np.ones(n_images)
    for image_indices in annotations.image_indices_of_class:
        if len(image_indices):
            share = len(image_indices) / n_images
            factors[image_indices] = np.maximum(factors[image_indices], (threshold / share) ** 0.5)
    return factors


class RepeatFactorSampler:
    """Give the image at each position of an endless sequence.

    One pass over the data ("epoch") holds an image with factor r either floor(r) or ceil(r)
    times, r times on average, in random order. To get that, the factors of an epoch's images,
    in random order, are laid end to end on a line that continues from epoch to epoch; an image
    comes once for every whole number inside its part. So the length of all epochs up to any one
    is known without drawing them, and the image at a position is a pure function of (factors,
    seed, position).

    Args:
        repeat_factors: `(n_images,)`, each at least 1.
        seed: Of the order.

    Raises:
        ValueError: There are no factors, or one is below 1 or not finite.
    """

    def __init__(self, repeat_factors: npt.ArrayLike, seed: int) -> None:
        self._factors = np.asarray(repeat_factors, dtype=np.float64)
        if self._factors.ndim != 1 or not len(self._factors):
            raise ValueError(
                f"`repeat_factors` must be of shape (n_images,) with n_images > 0, got "
                f"{self._factors.shape}"
            )
        if not (np.isfinite(self._factors).all() and self._factors.min() >= 1):
            raise ValueError("every repeat factor must be a finite number of at least 1")
        self._seed = seed
        self._epoch_length = float(self._factors.sum())
        self._line_start = float(np.random.default_rng(seed).random())
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    @property
    def n_images(self) -> int:
        """Give the number of images to draw from."""
        return len(self._factors)

    def image_index(self, position: int) -> int:
        """Give the image at `position` >= 0.

        The first call for an epoch draws it, in time and memory proportional to its length.
        """
        if position < 0:
            raise ValueError(f"`position` must be at least 0, got {position}")
        epoch = int(position / self._epoch_length)
        while self._first_position(epoch + 1) <= position:
            epoch += 1
        while self._first_position(epoch) > position:
            epoch -= 1
        if epoch != self._epoch:
            self._order, self._epoch = self._draw(epoch), epoch
        return int(self._order[position - self._first_position(epoch)])

    def _first_position(self, epoch: int) -> int:
        """Give the position at which an epoch starts: whole numbers on the line before it."""
        return int(np.floor(self._line_start + epoch * self._epoch_length))

    def _draw(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, epoch])
        images = rng.permutation(self.n_images)
        start = self._line_start + epoch * self._epoch_length
        edges = np.floor(np.cumsum(np.append(start, self._factors[images]))).astype(np.int64)
        # Rounding in the running sum must not move the epoch's end.
        edges[-1] = self._first_position(epoch + 1)
        counts = np.diff(edges)
        return rng.permutation(np.repeat(images, counts))
