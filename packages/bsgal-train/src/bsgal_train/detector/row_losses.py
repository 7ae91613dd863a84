"""Losses before they are summed: all that selection needs to know of a detector.

A detector takes part in every selection mode if its heads hand each loss to `report`, row by row,
and return what `report` gives back. A row is a proposal, an anchor or a point of a feature map. It
says which object of which image it stands for, so that

- an object's share of a loss can be told (its rows' sum),
- objects can be left out of a step that has been run already (`RowLosses.total` with some rows),
- a module that is called with the same rows can be scored row by row (`RowLosses.modules`).

A cascade reports one `RowLosses` per loss and stage, each with the modules of its own stage. While
nothing is recorded, `report` costs one sum, which training needs anyway.

Rows are told apart by `gt_source` of the training inputs' "instances" (`bsgal_train.data.REAL`, or
the number of the pasted object in its image), which detectron2 carries over to matched proposals,
and by the place of the object among them, real or pasted.
Heads ask `object_source` for the first: inputs that do not tell hold real objects only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bsgal_train.data.samples import REAL
from bsgal_train.detector.agreement import agree
from bsgal_train.processes import group as processes

__all__ = [
    "BACKGROUND",
    "RowLosses",
    "Rows",
    "object_source",
    "proposal_rows",
    "recorded",
    "report",
]

BACKGROUND = -2
"""`source` of a row that stands for no object; real objects have -1, pasted ones their number."""

Kind = Literal["cls", "box", "mask", "proposal"]
"""What a loss trains: classes, boxes or masks of the region heads, or the proposal network."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Rows:
    """Where rows come from.

    Attributes:
        source: int64 (R,), `gt_source` of the object that a row is matched to, or `BACKGROUND`.
        object: int64 (R,), place of that object among its image's "instances"; -1 for background.
        image: int64 (R,), position of its image in the batch.
        boxes_xyxy: float (R, 4), the region a row looks at; a point of a feature map is a box
            without area. No gradient.
        class_index: int64 (R,), class of the object that a row is matched to, anything for
            background; None where objects are found without their classes.
    """

    source: Tensor
    object: Tensor
    image: Tensor
    boxes_xyxy: Tensor
    class_index: Tensor | None = None

    def __getitem__(self, chosen: Tensor) -> Rows:
        """Return some of the rows, by mask or by index."""
        return Rows(
            source=self.source[chosen],
            object=self.object[chosen],
            image=self.image[chosen],
            boxes_xyxy=self.boxes_xyxy[chosen],
            class_index=None if self.class_index is None else self.class_index[chosen],
        )


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RowLosses:
    """One of the detector's losses, row by row.

    Attributes:
        name: its key in the detector's losses.
        kind: what it trains.
        per_row: float32 (R,) with its graph, weights included.
        normalizer: what the sum over the batch's rows is divided by, above 0.
        rows: where the R rows come from.
        modules: names in the detector of the modules whose input has exactly these rows along its
            first axis; empty if there are none.
        hardest: float32 (R,), of a mask the mean loss of its hardest pixels, without graph; None of
            other losses. An outline that is off by a little is wrong in few pixels, which the mean
            over all of them hides.
    """

    name: str
    kind: Kind
    per_row: Tensor
    normalizer: float
    rows: Rows
    modules: tuple[str, ...] = ()
    hardest: Tensor | None = None

    def total(self, keep: Tensor | None = None) -> Tensor:
        """Return the scalar loss; with `keep`, bool (R,), that of some rows by the same divisor."""
        kept = self.per_row if keep is None else self.per_row[keep]
        return kept.sum() / self.normalizer


_recorders: ContextVar[tuple[list[RowLosses], ...]] = ContextVar("_recorders", default=())


def report(
    *,
    name: str,
    kind: Kind,
    per_row: Tensor,
    count: int,
    rows: Rows,
    modules: Sequence[str] = (),
    hardest: Tensor | None = None,
) -> Tensor:
    """Return the named loss of a batch, and note its rows where they are recorded.

    Arguments are the attributes of `RowLosses`, but for the divisor: `count` is what this process's
    part of the batch adds to it, such as a number of rows or images. The loss of the whole batch is
    divided by the sum, or by 1 if that is more. Where there are several processes, each loss is
    divided by its share of this, so that their mean is the loss of the whole batch; see `agree`.
    """
    normalizer = agree(
        f"divisor of {name}",
        lambda: max(processes.total(count), 1.0) / processes.n_processes(),
    )
    losses = RowLosses(
        name=name,
        kind=kind,
        per_row=per_row,
        normalizer=normalizer,
        rows=rows,
        modules=tuple(modules),
        hardest=hardest,
    )
    for recorder in _recorders.get():
        recorder.append(losses)
    return losses.total()


@contextmanager
def recorded() -> Iterator[list[RowLosses]]:
    """Fill a list with all losses that are reported inside the block, in order."""
    found: list[RowLosses] = []
    token = _recorders.set((*_recorders.get(), found))
    try:
        yield found
    finally:
        _recorders.reset(token)


def object_source(instances: Any) -> Tensor:
    """Return where each object of an image, or the object of each proposal, comes from.

    Args:
        instances: an `Instances` with gt_classes, of N objects or proposals.

    Returns:
        int64 (N,), its `gt_source`; all real where it has none, as inputs of other origin, and
        proposals in an image without objects.
    """
    if instances.has("gt_source"):
        source: Tensor = instances.gt_source
        return source
    return torch.full_like(instances.gt_classes, REAL)


def proposal_rows(proposals: Sequence[Any], n_classes: int) -> Rows:
    """Tell where the sampled proposals of a batch come from.

    Args:
        proposals: one `Instances` per image, with proposal_boxes, gt_classes and (where the image
            has objects) gt_source and gt_object.
        n_classes: number of foreground classes; a proposal of this class is background.
    """
    sources, objects, images = [], [], []
    for position, one in enumerate(proposals):
        foreground = one.gt_classes < n_classes
        # Without objects in the image neither field is there: every proposal in it is background.
        sources.append(torch.where(foreground, object_source(one), BACKGROUND))
        matched = one.gt_object if one.has("gt_object") else torch.full_like(one.gt_classes, -1)
        objects.append(torch.where(foreground, matched, -1))
        images.append(torch.full_like(one.gt_classes, position))
    return Rows(
        source=torch.cat(sources),
        object=torch.cat(objects),
        image=torch.cat(images),
        boxes_xyxy=torch.cat([one.proposal_boxes.tensor for one in proposals]).detach(),
        class_index=torch.cat([one.gt_classes for one in proposals]),
    )
