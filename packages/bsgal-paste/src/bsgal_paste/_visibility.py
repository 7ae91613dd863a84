"""Decide which instances are still visible enough to keep once others lie over them.

Both rules work on the regions of the target's own instances and of those placed over them, later
over earlier. They take the covered pixels away *in place* and say which instances stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bsgal_paste._arrays import BoolArray, FloatArray, IntArray
from bsgal_paste._region import Region


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Say what happens to each instance, older ones first.

    Attributes:
        kept: Bool `(N,)`: the instance stays in the annotations.
        painted: Bool `(N,)`: a placed instance is drawn into the image; True for older ones.
    """

    kept: BoolArray
    painted: BoolArray


class VisibilityRule(Protocol):
    """Resolve the occlusion of a stack of instances."""

    def judge(
        self,
        older: Sequence[Region],
        placed: Sequence[Region],
        boxes_xyxy: FloatArray,
        full_areas_px: IntArray,
        image_hw: tuple[int, int],
    ) -> Verdict:
        """Take covered pixels away from the regions' masks and judge each instance.

        Args:
            older: Regions of the target's instances; masks are changed in place.
            placed: Regions of the placed instances, in order; masks are changed in place.
            boxes_xyxy: `(len(older), 4)`, boxes of the older instances.
            full_areas_px: `(len(older) + len(placed),)`, area of each instance before anything
                covered it.
            image_hw: Height and width of the image.
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

    def judge(
        self,
        older: Sequence[Region],
        placed: Sequence[Region],
        boxes_xyxy: FloatArray,
        full_areas_px: IntArray,
        image_hw: tuple[int, int],
    ) -> Verdict:
        """Take covered pixels away from the regions' masks and judge each instance.

        Works from the top down: what covers an instance is settled before it is judged.
        """
        kept = np.ones(len(older) + len(placed), dtype=bool)
        covered = np.zeros(image_hw, dtype=bool)
        for i in reversed(range(len(placed))):
            region, below = placed[i], covered[placed[i].window]
            _take_away(region.mask, below)
            index = len(older) + i
            kept[index] = self._is_visible(region.area_px(), full_areas_px[index])
            if kept[index]:
                below |= region.mask
        for i, region in enumerate(older):
            _take_away(region.mask, covered[region.window])
            area = region.area_px()
            kept[i] = area == full_areas_px[i] or self._is_visible(area, full_areas_px[i])
        painted = kept.copy()
        painted[: len(older)] = True
        return Verdict(kept, painted)

    def _is_visible(self, area_px: int, full_area_px: int) -> bool:
        return bool(
            area_px >= self.min_visible_px and area_px >= self.min_visible_frac * full_area_px
        )


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

    def judge(
        self,
        older: Sequence[Region],
        placed: Sequence[Region],
        boxes_xyxy: FloatArray,
        full_areas_px: IntArray,
        image_hw: tuple[int, int],
    ) -> Verdict:
        """Take covered pixels away from the regions' masks and judge, paste by paste."""
        regions = [*older, *placed]
        kept = np.ones(len(regions), dtype=bool)
        boxes = [*boxes_xyxy, *(np.array(region.box_xyxy(), dtype=float) for region in placed)]
        for i in range(len(older), len(regions)):
            for below in np.flatnonzero(kept[:i]).tolist():
                shared = regions[below].overlap(regions[i])
                if shared is None or not (shared[0] & shared[1]).any():
                    continue
                _take_away(*shared)
                area = regions[below].area_px()
                box = np.array(regions[below].box_xyxy(), dtype=float)
                near = bool(np.all(np.abs(box - boxes[below]) <= self.max_box_shift_px))
                kept[below] = area > 0 and (near or area > self.min_area_px)
                boxes[below] = box
        return Verdict(kept, np.ones(len(regions), dtype=bool))


def _take_away(mask: BoolArray, covered: BoolArray) -> None:
    # For bools a > b is a & ~b, in one pass.
    np.greater(mask, covered, out=mask)
