"""Numbers about masks: how sure one is of itself, and how far two agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._segmenter import SoftMask


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
