"""Check the loss that both scorers take."""

from __future__ import annotations

import math

from torch import Tensor


def check_loss(loss: Tensor, loss_scale: float) -> None:
    """Raise unless a loss has a graph, and its scale can be divided by.

    Args:
        loss: As in `score`.
        loss_scale: What it was multiplied by.

    Raises:
        ValueError: If the loss is no scalar that requires grad, or the scale is not finite and
            positive.
    """
    if loss.dim() != 0 or not loss.requires_grad:
        raise ValueError("`loss` must be a scalar that requires grad")
    if not (math.isfinite(loss_scale) and loss_scale > 0):
        raise ValueError(f"`loss_scale` must be finite and positive, got {loss_scale}")
