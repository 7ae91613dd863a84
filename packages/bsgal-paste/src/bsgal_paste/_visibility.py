"""Decide which instances are still visible enough to keep once others lie over them.

Both rules work on a stack of masks in which the first `n_older` are the target's own instances
and the rest were placed over them, later over earlier. They take the covered pixels away *in
place* and say which instances stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bsgal_paste._annotated_image import tight_boxes_xyxy
from bsgal_paste._arrays import BoolArray, FloatArray, IntArray
from bsgal_paste._cutout import Cutout


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say what happens to each instance of a stack.

    Attributes:
        kept: Bool `(N,)`: the instance stays in the annotations.
        painted: Bool `(N,)`: a placed instance is drawn into the image; True for older ones.
    """

    kept: BoolArray
    painted: BoolArray


class VisibilityRule(Protocol):
    """Resolve the occlusion of a stack of masks."""

    def update_masks(
        self,
        masks: BoolArray,
        boxes_xyxy: FloatArray,
        full_areas_px: IntArray,
        cutouts: Sequence[Cutout],
    ) -> Verdict:
        """Take covered pixels away from `masks` and judge each instance.

        Args:
            masks: Bool `(n_older + len(cutouts), H, W)`; changed in place.
            boxes_xyxy: `(n_older, 4)`, boxes of the older instances.
            full_areas_px: `(N,)`, area of each instance before anything covered it.
            cutouts: The placed instances, whose label masks are the last masks of the stack.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class VisibleShare:
    """Keep an instance while enough of its own area is visible: the default rule.

    A real instance that nothing covers always stays.
    The share is of the whole object: for a real instance of its mask in the target, for a pasted
    one of its label mask including what the image's border cuts off. A pasted instance that fails
    is not drawn at all, so no object without a label is left in the picture and nothing is hidden
    under it.
    """

    min_visible_frac: float = 0.1
    """Smallest share of the area that must be visible, 0 to 1."""
    min_visible_px: int = 1
    """Smallest number of visible pixels, at least 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_visible_frac <= 1 or self.min_visible_px < 1:
            raise ValueError(
                "need 0 <= `min_visible_frac` <= 1 and `min_visible_px` >= 1, got "
                f"{self.min_visible_frac} and {self.min_visible_px}"
            )

    def update_masks(
        self,
        masks: BoolArray,
        boxes_xyxy: FloatArray,
        full_areas_px: IntArray,
        cutouts: Sequence[Cutout],
    ) -> Verdict:
        """Take covered pixels away from `masks` and judge each instance.

        Works from the top down: what covers an instance is settled before it is judged.
        """
        n_older = len(masks) - len(cutouts)
        kept = np.ones(len(masks), dtype=bool)
        covered = np.zeros(masks.shape[1:], dtype=bool)
        for i in reversed(range(n_older, len(masks))):
            cutout = cutouts[i - n_older]
            window = cutout.rows, cutout.columns
            visible = masks[i][window]
            visible &= ~covered[window]
            kept[i] = self._is_visible(visible, full_areas_px[i])
            if kept[i]:
                covered[window] |= visible
        free = ~covered
        for i in range(n_older):
            masks[i] &= free
            untouched = np.count_nonzero(masks[i]) == full_areas_px[i]
            kept[i] = untouched or self._is_visible(masks[i], full_areas_px[i])
        painted = kept.copy()
        painted[:n_older] = True
        return Verdict(kept, painted)

    def _is_visible(self, mask: BoolArray, full_area_px: int) -> bool:
        area = np.count_nonzero(mask)
        return bool(area >= self.min_visible_px and area >= self.min_visible_frac * full_area_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialVisibility:
    """Keep an instance as the released BSGAL and X-Paste code does.

    After each paste, an older instance whose mask was touched stays if no side of its box moved
    by more than `max_box_shift_px` in this paste, or if more than `min_area_px` of its mask is
    left. A pasted instance that goes is still in the picture. We depart in one point: an instance
    without any pixel left always goes (there it can stay, with an empty mask).
    """

    max_box_shift_px: float = 10.0
    """Largest move of a box side that is always tolerated."""
    min_area_px: int = 300
    """Mask area above which an instance stays however its box moved."""

    def update_masks(
        self,
        masks: BoolArray,
        boxes_xyxy: FloatArray,
        full_areas_px: IntArray,
        cutouts: Sequence[Cutout],
    ) -> Verdict:
        """Take covered pixels away from `masks` and judge each instance, paste by paste."""
        n_older = len(masks) - len(cutouts)
        kept = np.ones(len(masks), dtype=bool)
        boxes = np.concatenate([boxes_xyxy, tight_boxes_xyxy(masks[n_older:])])
        for i, cutout in enumerate(cutouts, start=n_older):
            window = cutout.rows, cutout.columns
            for older in np.flatnonzero(kept[:i]):
                if not (masks[older][window] & cutout.label_mask).any():
                    continue
                masks[older][window] &= ~cutout.label_mask
                area = np.count_nonzero(masks[older])
                box = tight_boxes_xyxy(masks[older : older + 1])[0]
                near = bool(np.all(np.abs(box - boxes[older]) <= self.max_box_shift_px))
                kept[older] = area > 0 and (near or area > self.min_area_px)
                boxes[older] = box
        return Verdict(kept, np.ones(len(masks), dtype=bool))
