"""The two classification losses whose gradients the `paper` mode compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bsgal_train.detector import autocast, sampling
from bsgal_train.detector.heads import class_targets
from bsgal_train.recipe import Precision

__all__ = ["candidate_loss", "gradients", "reference_loss"]

Inputs = Sequence[Mapping[str, Any]]


def reference_loss(detector: Any, inputs: Inputs, precision: Precision) -> Tensor | None:
    """Return the classification loss on real objects, with their own boxes as proposals.

    Args:
        detector: from `build_detector`, in training mode.
        inputs: real images with "instances"; those without objects add nothing.
        precision: of convolutions and linear layers.

    Returns:
        Binary cross-entropy summed over classes and boxes, divided by the number of boxes; None
        if there is no box.
    """
    inputs = [one for one in inputs if len(one["instances"]) > 0]
    if not inputs:
        return None
    boxes = [one["instances"].gt_boxes for one in inputs]
    gt_classes = torch.cat([one["instances"].gt_classes for one in inputs])
    with autocast(precision), _backbone_in_evaluation(detector):
        features = detector.backbone(detector.preprocess_image(inputs).tensor)
        logits = _class_logits(detector.roi_heads, features, boxes)
    targets = class_targets(gt_classes, logits.shape[1])
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(
        targets
    )


def candidate_loss(detector: Any, inputs: Inputs, precision: Precision, seed: int) -> Tensor | None:
    """Return the classification loss of the proposals that landed on pasted objects.

    Args:
        detector: from `build_detector`, in training mode.
        inputs: pasted images; `gt_source` of their "instances" is >= 0 where pasted.
        precision: of convolutions and linear layers.
        seed: of the sampling; with the training step's seed the same proposals are sampled.

    Returns:
        Binary cross-entropy summed over classes and over the foreground proposals matched to a
        pasted object, divided by the number of all sampled proposals; None if none is matched.
    """
    targets = [one["instances"] for one in inputs]
    roi_heads = detector.roi_heads
    with sampling(seed), autocast(precision), _backbone_in_evaluation(detector):
        images = detector.preprocess_image(inputs)
        features = detector.backbone(images.tensor)
        with torch.no_grad():
            # Samples anchors as the training step does, so that proposals come out alike.
            proposals, _ = detector.proposal_generator(images, features, targets)
            proposals = roi_heads.label_and_sample_proposals(proposals, targets)
        n_sampled = sum(len(p) for p in proposals)
        proposals = [p[_on_pasted(p, roi_heads.num_classes)] for p in proposals]
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        if len(gt_classes) == 0:
            return None
        logits = _class_logits(roi_heads, features, [p.proposal_boxes for p in proposals])
    rows = class_targets(gt_classes, logits.shape[1])
    return functional.binary_cross_entropy_with_logits(logits, rows, reduction="sum") / n_sampled


def gradients(loss: Tensor, detector: nn.Module) -> dict[str, Tensor | None]:
    """Return the gradient of a loss by parameter name, None where the loss does not depend.

    Nothing is accumulated into `.grad`.
    """
    named = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, values, strict=True))


def _class_logits(roi_heads: Any, features: Mapping[str, Tensor], boxes: list[Any]) -> Tensor:
    pooled = roi_heads.box_pooler([features[level] for level in roi_heads.in_features], boxes)
    logits: Tensor = roi_heads.box_predictor(roi_heads.box_head(pooled))[0]
    return logits


def _on_pasted(proposals: Any, n_classes: int) -> Tensor:
    foreground: Tensor = proposals.gt_classes < n_classes
    if not proposals.has("gt_source"):
        # An image without objects: every proposal is background.
        return torch.zeros_like(foreground)
    pasted: Tensor = proposals.gt_source >= 0
    return foreground & pasted


@contextmanager
def _backbone_in_evaluation(detector: Any) -> Iterator[None]:
    """Switch off what is random or stateful in the backbone, as scoring does in the paper."""
    was_training = detector.backbone.training
    detector.backbone.eval()
    try:
        yield
    finally:
        detector.backbone.train(was_training)
