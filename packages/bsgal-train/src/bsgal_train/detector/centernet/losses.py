"""Focal loss of a heatmap, and generalised IoU of boxes given as distances to their edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FocalSettings", "giou_loss_ltrb", "negative_focal", "positive_focal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FocalSettings:
    """Constants of the heatmap's focal loss (CenterNet, arXiv 1904.07850, equation 1).

    Attributes:
        alpha: weight of positives; negatives have 1 - alpha.
        beta: a negative's loss is scaled by (1 - heat) to this power, so that places beside a
            centre may answer.
        gamma: power of focusing.
        ignored_from: a negative predicted at least this strongly gives no loss: most likely an
            object that nobody annotated. 1 or more ignores none.
        clamp: probabilities are kept this far from 0 and 1.
    """

    alpha: float = 0.25
    beta: float = 4.0
    gamma: float = 2.0
    ignored_from: float = 0.85
    clamp: float = 1e-4


def positive_focal(logits: Tensor, settings: FocalSettings) -> Tensor:
    """Return the loss of each location that must be positive, shaped like `logits`."""
    p = logits.sigmoid().clamp(settings.clamp, 1 - settings.clamp)
    return -settings.alpha * (1 - p) ** settings.gamma * p.log()


def negative_focal(logits: Tensor, heat: Tensor, settings: FocalSettings) -> Tensor:
    """Return the loss of each location as background, shaped like `logits`; 0 where heat is 1."""
    p = logits.sigmoid().clamp(settings.clamp, 1 - settings.clamp)
    loss = -(1 - settings.alpha) * p**settings.gamma * (1 - p).log() * (1 - heat) ** settings.beta
    return torch.where(p < settings.ignored_from, loss, torch.zeros_like(loss))


def giou_loss_ltrb(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - generalised IoU (arXiv 1902.09630) of boxes that share their location.

    Args:
        predicted: float (Q, 4), distances to the left, top, right, bottom edge, at least 0.
        target: float (Q, 4), likewise, with positive area.

    Returns:
        float (Q,), between 0 and 2.
    """
    tiny = torch.finfo(predicted.dtype).eps
    inner = torch.minimum(predicted, target)
    outer = torch.maximum(predicted, target)
    overlap = _area(functional.relu(inner))
    union = _area(predicted) + _area(target) - overlap
    hull = _area(outer)
    return 1 - overlap / (union + tiny) + (hull - union) / (hull + tiny)


def _area(ltrb: Tensor) -> Tensor:
    return (ltrb[:, 0] + ltrb[:, 2]) * (ltrb[:, 1] + ltrb[:, 3])
