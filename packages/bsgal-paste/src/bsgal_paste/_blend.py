"""Combine the pixels of a cutout with those below it."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import ByteArray
from bsgal_paste._cutout import Cutout

BlendMode: TypeAlias = Literal["hard", "alpha", "gaussian", "poisson"]
"""How pixels are combined; labels are the same for all.

- `hard`: a pixel of the label mask is replaced, no other changes.
- `alpha`: every pixel is mixed by the cutout's soft alpha, so pixels just outside the label mask
  change a little too.
- `gaussian`: the object fades out towards its edge (Gaussian of 5 px, standard deviation 1 px); no
  pixel outside the label mask changes.
- `poisson`: gradients of the cutout, colours fitted to the surroundings (OpenCV's `seamlessClone`,
  after Pérez et al. 2003), solved over the cutout's window alone; no pixel outside the label mask
  changes.
"""

BLEND_MODES: tuple[str, ...] = get_args(BlendMode)
"""All values of `BlendMode`."""

_GAUSSIAN_PX = 5
_OPAQUE = np.uint8(255)
# By how much OpenCV erodes the mask of a seamless clone, and room for that around it.
_POISSON_RIM_PX = 3
_POISSON_MARGIN_PX = _POISSON_RIM_PX + 2


def blend(image: ByteArray, cutout: Cutout, mode: BlendMode) -> None:
    """Paste a cutout into `image`, in place.

    Args:
        image: uint8 RGB `(H, W, 3)`; changed inside the cutout's window only.
        cutout: What to paste.
        mode: One of `BLEND_MODES`.
    """
    region = image[cutout.rows, cutout.columns]
    if mode == "hard":
        _replace(region, cutout, cutout.rgb)
    elif mode == "alpha":
        _mix(region, cutout.rgb, np.asarray(cutout.alpha / 255, dtype=np.float32))
    elif mode == "gaussian":
        _mix(region, cutout.rgb, _faded(cutout, image.shape[:2]))
    else:
        _replace(region, cutout, _fitted(image, cutout))


def _replace(region: ByteArray, cutout: Cutout, rgb: ByteArray) -> None:
    # OpenCV's masked copy takes a fiftieth of the time of NumPy's. Its result is assigned because
    # it is a new array where the region is not laid out for OpenCV.
    region[:] = cv2.copyTo(rgb, cutout.label_mask.view(np.uint8), region)


def _mix(region: ByteArray, rgb: ByteArray, weight: npt.NDArray[np.float32]) -> None:
    region[:] = np.rint(region + weight[..., None] * (rgb.astype(np.float32) - region))


def _faded(cutout: Cutout, image_hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Blur the label mask, kept inside it; it does not fade where the image's border cuts it."""
    reach = _GAUSSIAN_PX // 2
    at_border = (
        (cutout.rows.start == 0, cutout.rows.stop == image_hw[0]),
        (cutout.columns.start == 0, cutout.columns.stop == image_hw[1]),
    )
    going_on = [[reach * cut for cut in axis] for axis in at_border]
    ending = [[reach * (not cut) for cut in axis] for axis in at_border]
    mask = cutout.label_mask.astype(np.float32)
    padded = np.pad(np.pad(mask, going_on, mode="edge"), ending)
    blurred = np.asarray(cv2.GaussianBlur(padded, (_GAUSSIAN_PX, _GAUSSIAN_PX), 0))
    return blurred[reach:-reach, reach:-reach] * mask


def _fitted(image: ByteArray, cutout: Cutout) -> ByteArray:
    """Solve for the cutout's colours inside its label mask, the surroundings held fixed."""
    margin = (_POISSON_MARGIN_PX,) * 4
    rows, columns = (
        np.clip(np.arange(axis.start - margin[0], axis.stop + margin[0]), 0, side - 1)
        for axis, side in zip((cutout.rows, cutout.columns), image.shape, strict=False)
    )
    below = image[rows[:, None], columns]
    mask = cv2.copyMakeBorder(cutout.label_mask * _OPAQUE, *margin, cv2.BORDER_CONSTANT, value=0)
    above = _spread(cv2.copyMakeBorder(cutout.rgb, *margin, cv2.BORDER_REPLICATE), mask)
    # OpenCV takes a rim away; widened first, the label mask is what is left.
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=_POISSON_RIM_PX)
    # It puts the centre of the mask's bounding box at the given point.
    x, y, width, height = cv2.boundingRect(mask)
    centre = x + width // 2, y + height // 2
    fitted = cv2.seamlessClone(above, below, mask, centre, cv2.NORMAL_CLONE)
    inside = (slice(_POISSON_MARGIN_PX, -_POISSON_MARGIN_PX),) * 2
    return np.ascontiguousarray(fitted[inside], dtype=np.uint8)


def _spread(rgb: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> ByteArray:
    """Give each pixel outside the mask the colour of the nearest one inside.

    So the object has no edge of its own to the solver, whatever lies under transparent pixels.
    """
    outside = np.where(mask > 0, 0, 1).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(
        outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colour_of = np.zeros((int(nearest.max()) + 1, 3), dtype=np.uint8)
    colour_of[nearest[outside == 0]] = rgb[outside == 0]
    return np.asarray(colour_of[nearest], dtype=np.uint8)
