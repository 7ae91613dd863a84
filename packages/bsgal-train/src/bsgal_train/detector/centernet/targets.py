"""What CenterNet should predict for one image, and which object each part of it comes from.

Follows the class-agnostic proposal network of CenterNet2 (Zhou, Koltun and Krähenbühl, 2021,
arXiv 2103.07461, section 4) as BSGAL configures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bsgal_train.detector.centernet.locations import Locations

__all__ = ["HeatmapShape", "ImageTargets", "image_targets"]

_SMALLEST_HEAT = 1e-4
"""Heat below it is zero, as in the published code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatmapShape:
    """How wide an object's heat spreads.

    Attributes:
        min_overlap: a box as large as the object, moved to where the heat is exp(-1), still has
            about this overlap with it (the Gaussian radius of CornerNet, arXiv 1808.01244).
        min_radius_px: lower limit of the radius.
        size_ranges_px: range of half the box diagonal that each level answers for, inclusive.
    """

    min_overlap: float = 0.8
    min_radius_px: float = 4.0
    size_ranges_px: tuple[tuple[float, float], ...] = (
        (0, 80),
        (64, 160),
        (128, 320),
        (256, 640),
        (512, 10_000_000),
    )


@dataclass(frozen=True, slots=True)
class ImageTargets:
    """Targets over the M locations of one image with N objects.

    Attributes:
        heat: float (M,), 1 at the centre of an object, falling to 0.
        heat_object: long (M,), the object the heat comes from, -1 where it is 0.
        centres: long (P,), locations that must be positive; one may come more than once.
        centre_objects: long (P,), the object of each.
        box_locations: long (Q,), locations that must predict a box.
        box_ltrb: float (Q, 4), distances from these to the left, top, right and bottom edge, in
            strides of their level.
        box_objects: long (Q,), the object of each.
    """

    heat: Tensor
    heat_object: Tensor
    centres: Tensor
    centre_objects: Tensor
    box_locations: Tensor
    box_ltrb: Tensor
    box_objects: Tensor


def image_targets(locations: Locations, boxes_xyxy: Tensor, shape: HeatmapShape) -> ImageTargets:
    """Return the targets of one image.

    Heat is laid on every level, whatever an object's size; positives and boxes only on the
    levels that answer for its size. An object's boxes are predicted at its centre cell and the
    eight around it, as far as they lie inside the object; where two objects compete, the one with
    more heat has the location.

    Args:
        locations: of the image's pyramid.
        boxes_xyxy: float (N, 4), pixels, with positive sides.
        shape: spread of the heat and ranges of size, one for each level.
    """
    if len(shape.size_ranges_px) != len(locations.level_hw):
        raise ValueError(
            f"`size_ranges_px` has {len(shape.size_ranges_px)} ranges for "
            f"{len(locations.level_hw)} levels"
        )
    none = torch.zeros(0, dtype=torch.int64, device=boxes_xyxy.device)
    if len(boxes_xyxy) == 0:
        return ImageTargets(
            heat=torch.zeros(len(locations), device=boxes_xyxy.device),
            heat_object=torch.full((len(locations),), -1, device=boxes_xyxy.device),
            centres=none,
            centre_objects=none,
            box_locations=none,
            box_ltrb=boxes_xyxy.new_zeros((0, 4)),
            box_objects=none,
        )
    centres_xy = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    answers = _answering_levels(sides, shape.size_ranges_px)
    # Below, (M, N): a row per location, a column per object.
    cell_steps, distance2 = _to_centres(locations, centres_xy)
    delta = (1 - shape.min_overlap) / (1 + shape.min_overlap)
    radius2 = (2 * delta**2 * sides.prod(1)).clamp(min=shape.min_radius_px**2)
    weighted = distance2 / radius2
    least, heat_object = weighted.min(1)
    heat = torch.exp(-least)
    faint = heat < _SMALLEST_HEAT
    heat[faint] = 0
    heat_object[faint] = -1

    ltrb = _ltrb(locations.xy[:, None], boxes_xyxy[None])
    may_predict = (cell_steps <= 1) & (ltrb.amin(2) > 0) & answers[:, locations.level].T
    weighted[~may_predict] = torch.inf
    least, box_object = weighted.min(1)
    box_locations = torch.nonzero(least.isfinite())[:, 0]
    box_objects = box_object[box_locations]
    centres, centre_objects = _centre_locations(locations, centres_xy, answers)
    return ImageTargets(
        heat=heat,
        heat_object=heat_object,
        centres=centres,
        centre_objects=centre_objects,
        box_locations=box_locations,
        box_ltrb=ltrb[box_locations, box_objects] / locations.stride[box_locations, None],
        box_objects=box_objects,
    )


def _answering_levels(sides: Tensor, ranges: Sequence[tuple[float, float]]) -> Tensor:
    """Return bool (N, levels): which levels answer for each object's size."""
    half_diagonal = sides.square().sum(1).sqrt() / 2
    limits = torch.tensor(ranges, device=sides.device)
    return (half_diagonal[:, None] >= limits[:, 0]) & (half_diagonal[:, None] <= limits[:, 1])


def _to_centres(locations: Locations, centres_xy: Tensor) -> tuple[Tensor, Tensor]:
    """Return, both (M, N), cells to the centre's cell (larger axis) and pixels² to the centre.

    At the centre cell itself the distance counts as 0, so that its heat is exactly 1.
    """
    stride = locations.stride[:, None, None]
    cell = torch.floor(centres_xy / stride) * stride + torch.floor(stride / 2)
    steps = ((locations.xy[:, None] - cell).abs() / stride).amax(2)
    distance2 = (locations.xy[:, None] - centres_xy).square().sum(2)
    distance2[steps == 0] = 0
    return steps, distance2


def _ltrb(xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    return torch.cat([xy - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - xy], dim=-1)


def _centre_locations(
    locations: Locations, centres_xy: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    places, objects = [], []
    for level in range(len(locations.level_hw)):
        own = torch.nonzero(answers[:, level])[:, 0]
        places.append(locations.index_of(centres_xy[own], level))
        objects.append(own)
    return torch.cat(places), torch.cat(objects)
