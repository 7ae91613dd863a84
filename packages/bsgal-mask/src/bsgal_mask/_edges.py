"""What a pixel on an object's edge is made of: how much object, and the object's own colour."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_mask._segmenter import Image, SoftMask

_Array: TypeAlias = NDArray[Any]

# Reach of the colours that are averaged on either side of an edge.
_INSIDE_SIGMA_PX, _OUTSIDE_SIGMA_PX = 2.0, 3.0
# Where the two sides' colours are closer than this (of 255, Euclidean in RGB), a pixel's own
# colour says more about noise than about coverage.
_MIN_CONTRAST = 30.0
# Shares this close to 0 or 1 are noise.
_MARGIN = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """What is done to the pixels on the chosen mask's outline."""

    coverage_from_colours: bool = True
    """Whether the alpha of edge pixels becomes the share of object that their colour shows. Masks
    of methods with a coarse map get more exact."""
    object_colours: bool = False
    """Whether the background's colour is taken out of edge pixels. Alpha stays as it is."""

    def config(self) -> dict[str, Any]:
        """Return the settings."""
        return dataclasses.asdict(self)

    def refined(self, image: Image, mask: SoftMask) -> SoftMask:
        """Return the mask (H, W) of an image (H, W, 3) with the coverage that is asked for."""
        return coverage_from_colours(image, mask) if self.coverage_from_colours else mask

    def recoloured(self, image: Image, alpha: Image) -> Image:
        """Return the image (H, W, 3) with the colours that are asked for."""
        return object_colours(image, alpha) if self.object_colours else image


def coverage_from_colours(image: Image, mask: SoftMask, band_px: int = 2) -> SoftMask:
    """Say of each pixel along the outline how much of it is object, from its colour.

    On an edge a pixel's colour is a mixture, c = a f + (1 - a) b. With f and b, the mean colours a
    little way inside and outside, a is the projection of c - b on f - b. Pixels elsewhere, and
    those where f and b are too close to tell, keep the mask's value.

    Args:
        image: uint8 RGB (H, W, 3).
        mask: float32 (H, W) in [0, 1]; its outline, at 0.5, is right to within `band_px`.
        band_px: How far from the outline pixels may change, in pixels.

    Returns:
        float32 (H, W) in [0, 1].
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    found = (mask >= 0.5).astype(np.uint8)
    near = cv2.dilate(found, kernel, iterations=band_px) > 0
    near &= cv2.erode(found, kernel, iterations=band_px) == 0
    if not near.any():
        return mask
    colours = image.astype(np.float32)
    inside = cv2.erode(found, kernel).astype(np.float32)
    outside = 1 - cv2.dilate(found, kernel, iterations=2).astype(np.float32)
    object_rgb, object_weight = _local_mean(colours, inside, _INSIDE_SIGMA_PX)
    background_rgb, background_weight = _local_mean(colours, outside, _OUTSIDE_SIGMA_PX)
    contrast = object_rgb - background_rgb
    squared = (contrast * contrast).sum(axis=2)
    known = near & (np.minimum(object_weight, background_weight) > 1e-3)
    known &= squared > _MIN_CONTRAST**2
    share = ((colours - background_rgb) * contrast).sum(axis=2)[known] / squared[known]
    refined = mask.copy()
    refined[known] = np.clip((share - _MARGIN) / (1 - 2 * _MARGIN), 0, 1)
    return refined


def object_colours(image: Image, alpha: Image) -> Image:
    """Take the background's colour out of soft edge pixels; alpha itself stays as it is.

    Two rounds, wide and narrow, of the blur fusion of Forte ("Approximate Fast Foreground Colour
    Estimation", ICIP 2021): first guesses f and b are the local means of the image weighted by
    alpha and by its complement, and f + alpha (c - alpha f - (1 - alpha) b) is the estimate.

    Args:
        image: uint8 RGB (H, W, 3); not changed.
        alpha: uint8 (H, W).

    Returns:
        uint8 RGB (H, W, 3); pixels that are wholly object or wholly background are unchanged.
    """
    soft = (alpha > 0) & (alpha < 255)
    if not soft.any():
        return image
    colours = image.astype(np.float32)
    share = alpha.astype(np.float32) / 255
    object_rgb, background_rgb = colours, colours
    for sigma_px in (30.0, 3.0):
        object_mean, _ = _local_mean(object_rgb, share, sigma_px)
        background_rgb, _ = _local_mean(background_rgb, 1 - share, sigma_px)
        weight = share[..., None]
        rest = colours - weight * object_mean - (1 - weight) * background_rgb
        object_rgb = np.clip(object_mean + weight * rest, 0, 255)
    result = image.copy()
    result[soft] = np.rint(object_rgb[soft]).astype(np.uint8)
    return result


def _local_mean(colours: _Array, weights: _Array, sigma_px: float) -> tuple[_Array, _Array]:
    """Return the weighted Gaussian mean of colours (H, W, 3), and its total weight (H, W)."""
    total = cv2.GaussianBlur(weights, (0, 0), sigma_px)
    weighted = cv2.GaussianBlur(colours * weights[..., None], (0, 0), sigma_px)
    return weighted / np.maximum(total, 1e-6)[..., None], total
