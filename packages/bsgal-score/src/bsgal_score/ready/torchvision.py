"""Units of torchvision's detectors, as the model's own forward pass samples their rows."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .._unit_index import IGNORED

_FOREGROUND_HEADS = ("mask_head", "mask_predictor", "keypoint_head", "keypoint_predictor")


class RoIHeadsUnits:
    """Note which object each row of `RoIHeads` stands for, in a forward pass of the whole model.

        units = RoIHeadsUnits(model.roi_heads, prefix="roi_heads")
        with units, scorer:
            losses = model(images, targets)
            scores = scorer.score(head_losses, units.index(unit_of_object))

    A row of the box head is a proposal, and its unit that of the object it was matched with.
    Proposals of the background count nowhere: no object owns them. The rows of the mask and
    keypoint heads are the foreground's. What the region proposal network loses is no unit's; score
    the sum of the other losses.

    Args:
        roi_heads: Of a Faster, Mask or Keypoint R-CNN.
        prefix: What the cache's names put before those of the heads' parameters, without the dot:
            "roi_heads" for `model.named_parameters()`, "" for `model.roi_heads.named_parameters()`.
    """

    def __init__(self, roi_heads: nn.Module, *, prefix: str = "") -> None:
        if not hasattr(roi_heads, "select_training_samples"):
            raise TypeError(
                "`roi_heads` must be the RoIHeads of a torchvision detector, got a "
                f"{type(roi_heads).__name__}; pass model.roi_heads"
            )
        self.roi_heads = roi_heads
        self.prefix = f"{prefix}." if prefix else ""
        self._matched: list[Tensor] | None = None
        self._labels: list[Tensor] = []

    def __enter__(self) -> RoIHeadsUnits:
        """Begin to watch the sampling of proposals."""
        select: Any = self.roi_heads.select_training_samples
        self._matched = None

        def noted(*args: Any, **kwargs: Any) -> Any:
            found = select(*args, **kwargs)
            _, self._matched, self._labels, _ = found
            return found

        # On the instance, before the method of its class.
        self.roi_heads.__dict__["select_training_samples"] = noted
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the heads as they were; the last pass's index can still be had."""
        del self.roi_heads.__dict__["select_training_samples"]

    def index(self, unit_of_object: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the `unit_index` of the pass for `GhostScorer.score`.

        Args:
            unit_of_object: For each image the unit of each of its target's objects, int64, in
                their order; `REFERENCE` for real ones that feed the cache, `IGNORED` for none.

        Raises:
            ValueError: If no pass was seen, or the units do not fit its targets.
        """
        if self._matched is None:
            raise ValueError(
                "no sampling of proposals was seen: run the model in training mode, with targets, "
                "inside `with units:`"
            )
        if len(unit_of_object) != len(self._matched):
            raise ValueError(
                f"`unit_of_object` has {len(unit_of_object)} images, the pass had "
                f"{len(self._matched)}"
            )
        rows, foreground = [], []
        for image, (units, matched, labels) in enumerate(
            zip(unit_of_object, self._matched, self._labels, strict=True)
        ):
            own = labels > 0
            if units.dtype != torch.int64 or (own.any() and len(units) <= int(matched[own].max())):
                raise ValueError(
                    f"`unit_of_object[{image}]` must be int64 with a unit for each object of the "
                    f"image's target; got {units.dtype} of shape {tuple(units.shape)}"
                )
            found = torch.full_like(labels, IGNORED)
            found[own] = units.to(labels.device)[matched[own]]
            rows.append(found)
            foreground.append(found[own])
        index = {f"{self.prefix}box_{part}": torch.cat(rows) for part in ("head", "predictor")}
        return index | {f"{self.prefix}{n}": torch.cat(foreground) for n in _FOREGROUND_HEADS}
