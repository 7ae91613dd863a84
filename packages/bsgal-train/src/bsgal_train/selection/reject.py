"""A step's losses without its rejected objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bsgal_train.data import LabelledImage
from bsgal_train.detector.row_losses import BACKGROUND, RowLosses, Rows

__all__ = ["losses_without"]

# Share of a background row's area inside a rejected object from which on it is ignored.
_MIN_INSIDE = 0.5


def losses_without(
    losses: Mapping[str, Tensor],
    rows: Sequence[RowLosses],
    images: Sequence[LabelledImage],
    rejected: Sequence[set[int]],
) -> dict[str, Tensor]:
    """Return a batch's losses without some pasted objects, from the graph that is there.

    An object's rows give no loss: neither those matched to it, nor background of which at least
    half lies inside its box. Divisors stay, so that the rest weighs what it weighed.

    Args:
        losses: the detector's losses by name; any that is not among `rows` stays as it is.
        rows: the same losses row by row.
        images: the batch, which says where objects are.
        rejected: for each image, numbers of the pasted objects to leave out.
    """
    if not any(rejected):
        return dict(losses)
    kept = {one.name: one.total(~_is_rejected(one.rows, images, rejected)) for one in rows}
    return {name: kept.get(name, loss) for name, loss in losses.items()}


def _is_rejected(
    rows: Rows, images: Sequence[LabelledImage], rejected: Sequence[set[int]]
) -> Tensor:
    found = torch.zeros_like(rows.image, dtype=torch.bool)
    for position, numbers in enumerate(rejected):
        if not numbers:
            continue
        here = rows.image == position
        image = images[position]
        wanted = torch.tensor(sorted(numbers), device=found.device)
        matched = torch.isin(rows.source, wanted)
        is_object = torch.isin(image.source.to(found.device), wanted)
        boxes_xyxy = image.boxes_xyxy.to(found.device)[is_object]
        inside = _inside_share(rows.boxes_xyxy, boxes_xyxy) >= _MIN_INSIDE
        found |= here & (matched | ((rows.source == BACKGROUND) & inside))
    return found


def _inside_share(boxes_xyxy: Tensor, of_xyxy: Tensor) -> Tensor:
    """Return the largest share of each box's area inside one of some others; for a point, 0 or 1.

    Args:
        boxes_xyxy: (R, 4).
        of_xyxy: (K, 4), K at least 1.
    """
    low = torch.maximum(boxes_xyxy[:, None, :2], of_xyxy[None, :, :2])
    high = torch.minimum(boxes_xyxy[:, None, 2:], of_xyxy[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1)[:, None]
    overlaps = (high >= low).all(dim=2)
    share = torch.where(area > 0, shared / area.clamp(min=1e-12), overlaps.to(shared.dtype))
    return share.amax(dim=1)
