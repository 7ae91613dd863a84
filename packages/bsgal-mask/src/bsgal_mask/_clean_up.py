"""Repair a mask by explicit rules: parts, holes, and the reach of the soft edge."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_mask._segmenter import Image

Label: TypeAlias = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CleanUp:
    """What happens to the chosen mask before it is filtered and stored.

    All shares are of the image's pixels. Parts are 8-connected, holes 4-connected. Applying the
    same clean-up twice changes nothing more.
    """

    parts: Literal["all", "largest"] = "all"
    """Keep all parts, or only the largest (the first of equals, by rows)."""
    min_island_frac: float = 0.001
    """Parts smaller than this share are removed; 0 keeps all."""
    fill_holes_below_frac: float = 0.0
    """Holes smaller than this share are filled; 0 keeps all, 1 fills all."""
    edge_frac: float = 0.02
    """Reach of the soft edge beyond the label mask, as a share of the image's geometric mean side;
    fainter haze farther out is removed."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.parts not in ("all", "largest"):
            raise ValueError(f"`parts` must be 'all' or 'largest', got {self.parts!r}")
        for field in ("min_island_frac", "fill_holes_below_frac", "edge_frac"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"`{field}` must lie in [0, 1], got {getattr(self, field)}")

    def config(self) -> dict[str, Any]:
        """Return the settings."""
        return dataclasses.asdict(self)

    def apply(self, alpha: Image, label_mask_threshold: int) -> Image:
        """Return the cleaned alpha.

        Args:
            alpha: uint8 (H, W); not changed.
            label_mask_threshold: The label mask is `alpha >= label_mask_threshold`.
        """
        original = alpha >= label_mask_threshold
        label = _keep_parts(original, self.parts, self.min_island_frac)
        holes = _small_holes(label, self.fill_holes_below_frac)
        cleaned = alpha.copy()
        cleaned[original & ~label] = 0
        if holes.any():
            # The rim fades towards the hole; it becomes solid with it.
            rim = _dilate(holes, 2) & label
            cleaned[holes | rim] = 255
            label = label | holes
        reach_px = round(self.edge_frac * float(np.sqrt(alpha.size)))
        cleaned[~_dilate(label, reach_px)] = 0
        return cleaned


def _keep_parts(label: Label, parts: str, min_island_frac: float) -> Label:
    n_parts, indices, statistics, _ = cv2.connectedComponentsWithStats(
        label.astype(np.uint8), connectivity=8
    )
    areas = statistics[:, cv2.CC_STAT_AREA]
    kept = areas >= min_island_frac * label.size
    kept[0] = False
    if parts == "largest" and n_parts > 1:
        largest = 1 + int(np.argmax(areas[1:]))
        kept &= np.arange(n_parts) == largest
    return np.asarray(kept[indices])


def _small_holes(label: Label, below_frac: float) -> Label:
    """Return the background regions that do not reach the image's border and are small."""
    _, indices, statistics, _ = cv2.connectedComponentsWithStats(
        (~label).astype(np.uint8), connectivity=4
    )
    is_hole = statistics[:, cv2.CC_STAT_AREA] < below_frac * label.size
    is_hole[0] = False
    outer = (indices[0], indices[-1], indices[:, 0], indices[:, -1])
    is_hole[np.unique(np.concatenate(outer))] = False
    return np.asarray(is_hole[indices])


def _dilate(label: Label, radius_px: int) -> Label:
    side = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.dilate(label.astype(np.uint8), kernel) > 0)
