"""Large-scale jitter: resize by a random factor, cut a window, mirror half of the time.

The parameters are drawn first (`RandomCrop.sample`); applying them is a pure function. The result
is not padded: it is as large as the part of the window that the resized image fills.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["CropWindow", "RandomCrop"]


@dataclass(frozen=True, slots=True)
class CropWindow:
    """Hold everything random about one crop.

    Attributes:
        resized_hw: Size the whole image is resized to, in pixels.
        top_px: First row of the window in the resized image.
        left_px: First column of the window.
        window_hw: Size of the window; it lies inside the resized image.
        flip: Mirror the window horizontally, at last.
    """

    resized_hw: tuple[int, int]
    top_px: int
    left_px: int
    window_hw: tuple[int, int]
    flip: bool

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize, cut and mirror an image `(H, W)` or `(H, W, C)`; may return a view of it."""
        if image.shape[:2] != self.resized_hw:
            shrinks = self.resized_hw[0] < image.shape[0]
            resized: npt.NDArray[np.uint8] = cv2.resize(
                image,
                self.resized_hw[::-1],
                interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
            )
            image = resized
        window = image[self.rows, self.columns]
        return window[:, ::-1] if self.flip else window

    @property
    def rows(self) -> slice:
        """Give the window's rows of the resized image."""
        return slice(self.top_px, self.top_px + self.window_hw[0])

    @property
    def columns(self) -> slice:
        """Give the window's columns of the resized image."""
        return slice(self.left_px, self.left_px + self.window_hw[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrop:
    """Draw crop windows as EfficientDet's large-scale jitter does.

    Attributes:
        crop_px: Side of the square window.
        scale_range: The image is resized to fit into a square of `crop_px` times a factor drawn
            uniformly from this range.
        flip_prob: Probability of a mirror image.

    Raises:
        ValueError: A value is out of range.
    """

    crop_px: int = 160
    scale_range: tuple[float, float] = (0.8, 1.25)
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if self.crop_px < 1 or not 0 < low <= high or not 0 <= self.flip_prob <= 1:
            raise ValueError(
                "need `crop_px` >= 1, 0 < low <= high in `scale_range` and `flip_prob` in [0, 1], "
                f"got {self.crop_px}, {self.scale_range}, {self.flip_prob}"
            )

    def sample(self, image_hw: tuple[int, int], rng: np.random.Generator) -> CropWindow:
        """Draw the window for an image of `image_hw` pixels."""
        scale = rng.uniform(*self.scale_range)
        corner_share = rng.random(2)
        flip = bool(rng.random() < self.flip_prob)
        factor = self.crop_px * scale / max(image_hw)
        height, width = (max(1, round(side * factor)) for side in image_hw)
        window_hw = min(height, self.crop_px), min(width, self.crop_px)
        top_px = int(corner_share[0] * (height - window_hw[0] + 1))
        left_px = int(corner_share[1] * (width - window_hw[1] + 1))
        return CropWindow((height, width), top_px, left_px, window_hw, flip)
