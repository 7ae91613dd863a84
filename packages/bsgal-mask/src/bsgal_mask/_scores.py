"""Numbers about masks: how sure one is of itself, and how far two agree."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_mask._segmenter import Image, SoftMask


def confidence(mask: SoftMask) -> float | None:
    """Return how little of a soft mask is undecided, in [0, 1].

    The soft intersection over union of the mask p with its own binary form b = [p >= 0.5]:
    sum min(p, b) / sum max(p, b). 1 for a binary mask, lower the more of the object is grey, not
    moved by how much background there is; None for a mask that is zero everywhere.
    """
    binary = mask >= 0.5
    union = float(np.where(binary, 1.0, mask).sum(dtype=np.float64))
    return float(mask[binary].sum(dtype=np.float64)) / union if union else None


def intersection_over_union(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the IoU of two bool masks (H, W); 1 if both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def sharpness(image: Image, label: NDArray[np.bool_]) -> float:
    """Return how much fine detail an object shows, in grey levels.

    The object's box is scaled to 256 px along its longer side, so that larger renderings of a
    picture have about equal values; an object smaller than that has less detail. Taken is the
    difference to a copy blurred by 1 px, and of its absolute values inside the mask and on its
    outline the mean of the largest tenth: a sharp object has some sharp places, an object that is
    out of focus has none.

    Args:
        image: uint8 RGB (H, W, 3).
        label: The object's mask, bool (H, W), not empty.
    """
    rows, columns = np.flatnonzero(label.any(axis=1)), np.flatnonzero(label.any(axis=0))
    # A little of the surroundings, so that the outline counts.
    top, left = max(0, rows[0] - 2), max(0, columns[0] - 2)
    box = slice(top, rows[-1] + 3), slice(left, columns[-1] + 3)
    grey = cv2.cvtColor(image[box], cv2.COLOR_RGB2GRAY).astype(np.float32)
    scale = 256 / max(grey.shape)
    resolution_wh = tuple(max(1, round(side * scale)) for side in grey.shape[::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    grey = cv2.resize(grey, resolution_wh, interpolation=method)
    mask = cv2.resize(label[box].astype(np.uint8), resolution_wh, interpolation=cv2.INTER_NEAREST)
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0
    detail = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.0))[mask]
    n_largest = max(1, detail.size // 10)
    return float(np.partition(detail, detail.size - n_largest)[-n_largest:].mean())
