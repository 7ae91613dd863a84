"""Paste placed instances into an annotated image: a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from bsgal_paste._annotated_image import AnnotatedImage, Origin
from bsgal_paste._arrays import BoolArray, ByteArray, FloatArray, IntArray
from bsgal_paste._blend import BlendMode, blend
from bsgal_paste._cutout import Cutout
from bsgal_paste._visibility import VisibilityRule

RemovalReason: TypeAlias = Literal["too_small", "too_large", "outside", "corrupt", "hidden"]


@dataclass(frozen=True, slots=True)
class RemovedInstance:
    """Name an instance that is not in the result, and why.

    Attributes:
        reason: `hidden` under others or, for a pasted one, too far outside the image; for
            instances that were drawn but not placed `too_small`, `too_large`, `outside`,
            `corrupt`.
        category_id: Its category, or -1 for a whole donor image that cannot be read.
        instance_id: Its id, or None for a real instance.
        source_index: Its index in the input, or -1 for a pasted instance.
        visible_frac: Share of its area that would be visible.
    """

    reason: RemovalReason
    category_id: int
    instance_id: str | None
    source_index: int
    visible_frac: float


@dataclass(frozen=True, slots=True, eq=False)
class PasteResult:
    """Hold the image after pasting, every field in step with every other.

    Real instances come first, in the order of the input, then the pasted ones in the order of
    pasting. N counts both.

    Attributes:
        image: uint8 RGB `(H, W, 3)`.
        masks: Bool `(N, H, W)`, visible pixels only; no pasted mask overlaps another mask.
        boxes_xyxy: Float64 `(N, 4)`: the box of the input for a real instance that nothing
            covers, else the tight box of the mask.
        category_ids: Int64 `(N,)`.
        areas: Int64 `(N,)`, visible pixels.
        instance_ids: N entries: the pool's instance id, what the donor image calls one that is
            copied from there, or None for a real one.
        origins: N entries: `real`, `pool`, or `self` for one copied from another annotated image.
        source_index: Int64 `(N,)`: index in `original`, or -1 for a pasted instance.
        visible_frac: Float64 `(N,)`: visible share of the whole object. For a real instance the
            whole is its mask in `original`.
        removed: Instances that were in the input or were drawn, and are not in the result.
        original: The input, untouched: what to train on if the pastes are rejected.
    """

    image: ByteArray
    masks: BoolArray
    boxes_xyxy: FloatArray
    category_ids: IntArray
    areas: IntArray
    instance_ids: list[str | None]
    origins: list[Origin]
    source_index: IntArray
    visible_frac: FloatArray
    removed: tuple[RemovedInstance, ...]
    original: AnnotatedImage

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def is_pasted(self) -> BoolArray:
        """Say which instances this paste added, bool `(N,)`."""
        return self.source_index < 0

    @property
    def n_pasted(self) -> int:
        """Count the instances that this paste added."""
        return int(np.count_nonzero(self.is_pasted))

    def annotated_image(self) -> AnnotatedImage:
        """Give the result in the form of an input, to paste into it again."""
        return AnnotatedImage(
            self.image,
            self.masks,
            self.category_ids,
            boxes_xyxy=self.boxes_xyxy,
            instance_ids=self.instance_ids,
            origins=self.origins,
            boxes_only=self.original.boxes_only,
        )


def apply_cutouts(
    target: AnnotatedImage,
    cutouts: Sequence[Cutout],
    *,
    visibility: VisibilityRule,
    blend_mode: BlendMode = "hard",
    removed: Sequence[RemovedInstance] = (),
) -> PasteResult:
    """Paste cutouts in order, later over earlier.

    Args:
        target: The image to paste into; not changed.
        cutouts: What to paste, in order.
        visibility: Decides what stays once others lie over it.
        blend_mode: How pixels are combined.
        removed: Instances that were drawn but could not be placed, for the record.

    Returns:
        The result; without cutouts its arrays equal those of `target`.
    """
    n_older = len(target)
    older = [region.copy() for region in target.regions]
    placed = [cutout.region() for cutout in cutouts]
    old_areas = np.array([region.area_px() for region in older], dtype=np.int64)
    full_areas = np.append(old_areas, [cutout.full_area_px for cutout in cutouts]).astype(np.int64)
    verdict = visibility.judge(older, placed, target.boxes_xyxy, full_areas, target.image_hw)
    regions = older + placed
    areas = np.array([region.area_px() for region in regions], dtype=np.int64)

    image = target.image.copy()
    for cutout, painted in zip(cutouts, verdict.painted[n_older:], strict=True):
        if painted:
            blend(image, cutout, blend_mode)

    kept = np.flatnonzero(verdict.kept)
    masks = np.zeros((len(kept), *target.image_hw), dtype=bool)
    boxes = np.zeros((len(kept), 4))
    for mask, box, i in zip(masks, boxes, kept.tolist(), strict=True):
        mask[regions[i].window] = regions[i].mask
        untouched = i < n_older and areas[i] == old_areas[i]
        box[:] = target.boxes_xyxy[i] if untouched else regions[i].box_xyxy()

    category_ids = np.append(target.category_ids, [c.category_id for c in cutouts]).astype(np.int64)
    instance_ids = target.instance_ids + [cutout.instance_id for cutout in cutouts]
    origins = target.origins + [cutout.origin for cutout in cutouts]
    source_index = np.append(np.arange(n_older), np.full(len(cutouts), -1)).astype(np.int64)
    visible_frac = areas / full_areas
    hidden = tuple(
        RemovedInstance(
            "hidden",
            int(category_ids[i]),
            instance_ids[i],
            int(source_index[i]),
            float(visible_frac[i]),
        )
        for i in np.flatnonzero(~verdict.kept)
    )
    return PasteResult(
        image=image,
        masks=masks,
        boxes_xyxy=boxes,
        category_ids=category_ids[kept],
        areas=areas[kept],
        instance_ids=[instance_ids[i] for i in kept],
        origins=[origins[i] for i in kept],
        source_index=source_index[kept],
        visible_frac=visible_frac[kept],
        removed=(*removed, *hidden),
        original=target,
    )
