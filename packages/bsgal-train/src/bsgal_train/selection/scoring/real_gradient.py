"""A cache of real-data gradients of the region heads, refreshed from class-matched images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from bsgal_score import GradientCache
from bsgal_train.data import REAL, LabelledImage
from bsgal_train.processes import group as processes
from bsgal_train.recipe import LossKind
from bsgal_train.selection.scoring.passes import gradients, reference_loss
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["HeadCache", "classifiers", "head_modules"]

CLASS_ROWS = ("*.cls_score.*",)
"""Parameters with one row per class."""


def head_modules(
    detector: Any, kinds: Sequence[LossKind], layers: Literal["last", "heads"]
) -> dict[str, nn.Module]:
    """Return the modules, by name in the detector, whose gradients are compared.

    Args:
        detector: whose region heads are the box head and predictor (or lists of them) and the mask
            head with its last layer `predictor`.
        kinds: losses that count.
        layers: the last layers only, or all of the heads.
    """
    roi_heads = detector.roi_heads
    found: dict[str, nn.Module] = {}
    if "cls" in kinds or "box" in kinds:
        found["roi_heads.box_predictor"] = roi_heads.box_predictor
        if layers == "heads":
            found["roi_heads.box_head"] = roi_heads.box_head
    if "mask" in kinds:
        if layers == "heads":
            found["roi_heads.mask_head"] = roi_heads.mask_head
        else:
            found["roi_heads.mask_head.predictor"] = roi_heads.mask_head.predictor
    return found


def classifiers(detector: Any) -> list[nn.Linear]:
    """Return the layers that give the class logits, one per stage of the region heads."""
    found = detector.roi_heads.box_predictor
    stages: list[Any] = list(found) if isinstance(found, nn.ModuleList) else [found]
    return [stage.cls_score for stage in stages]


class HeadCache:
    """The gradient cache over the region heads, and where its gradients come from.

    Args:
        setup: of the run.

    Attributes:
        modules: what is followed, by name in the detector.
        parameters: theirs, by name in the detector.
        cache: of their gradients.
    """

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        self._reference = setup.reference
        self._refresh_every = config.refresh_every
        self._kinds = config.effective_losses
        self._precision = setup.recipe.detector.precision
        self._rowwise = config.rowwise
        self.modules = head_modules(setup.detector, self._kinds, config.layers)
        self.parameters = {
            f"{prefix}.{name}": parameter
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
        }
        self.cache = GradientCache(
            self.parameters.items(),
            decay=config.effective_decay,
            dtype=torch.bfloat16 if config.cache_dtype == "bf16" else torch.float32,
            rowwise=CLASS_ROWS if config.rowwise else (),
            bias_correction=True,
        )

    def refresh(self, batch: TrainingBatch) -> None:
        """Feed the cache from class-matched images, every `refresh_every` steps from the first.

        No graph is built below the heads.
        """
        if (batch.step - 1) % self._refresh_every:
            return
        real = self._reference.for_step(batch.samples, batch.seed)
        loss = reference_loss(
            batch.detector,
            real,
            self._precision,
            batch.seed,
            batch.keys,
            kinds=self._kinds,
            through_trunk=False,
        )
        if loss is not None:
            rows = self.present(real)
            self.cache.update(gradients(loss, self.parameters), rows=rows)

    def present(self, images: Sequence[LabelledImage]) -> list[int] | None:
        """Return the class indices of real objects; None where the cache has no use for them."""
        if not self._rowwise:
            return None
        own = {index for one in images for index in one.class_indices[one.source == REAL].tolist()}
        return sorted({index for part in processes.gather(sorted(own)) for index in part})
