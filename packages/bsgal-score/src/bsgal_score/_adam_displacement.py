"""What a further gradient adds to Adam's next step, its effect on the second moments included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def adam_displacement(
    gradient: Tensor, parameter: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]
) -> Tensor:
    """Return by how much lower a parameter ends up if k is added to the gradient of a step.

    With G the gradient without k, and m and v the moments after a step on G, Adam goes by
    a·m / (√v̂ + ε). With k, m grows by (1 - β₁) k and v by (1 - β₂)(2 G k + k²), so the
    difference is a·((1 - β₁) k - m·(D₁ - D₀) / D₀) / D₁ with the denominators D₀ and D₁ without
    and with k; written so, nothing cancels for a small k.

    Args:
        gradient: k, in the parameter's shape, float32 or float64.
        parameter: Its `.grad` is G; None counts as zero.
        state: Adam's state of the parameter; empty before its first step.
        group: Adam's parameter group.
    """
    k = gradient
    beta_1, beta_2 = (float(beta) for beta in group["betas"])
    n_steps = float(state.get("step", 0)) + 1
    zeros = torch.zeros_like(k)
    g = zeros if parameter.grad is None else parameter.grad.to(k.dtype)
    # AdamW decays the weights apart from the gradient: the same with and without k.
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        g = g.add(parameter.detach().to(k.dtype), alpha=group["weight_decay"])
    m = state.get("exp_avg", zeros).to(k.dtype).lerp(g, 1 - beta_1)
    v = state.get("exp_avg_sq", zeros).to(k.dtype).mul(beta_2).addcmul_(g, g, value=1 - beta_2)
    v_change = (2 * g).add_(k).mul_(k).mul_(1 - beta_2)
    if group["amsgrad"]:
        largest = state.get("max_exp_avg_sq", zeros).to(k.dtype)
        v, v_change = torch.maximum(largest, v), torch.maximum(largest, v + v_change)
        v_change = v_change.sub_(v)
    correction = 1 - beta_2**n_steps
    root_0 = (v / correction).sqrt_()
    root_1 = ((v + v_change).clamp_(min=0) / correction).sqrt_()
    # √x - √y = (x - y) / (√x + √y); where both roots are zero, so is the difference.
    smallest = torch.finfo(k.dtype).tiny
    root_change = v_change.div_(correction).div_((root_0 + root_1).clamp_(min=smallest))
    eps = float(group["eps"])
    moved: Tensor = (1 - beta_1) * k - m * root_change / (root_0 + eps)
    return moved.div_(root_1 + eps).mul_(float(group["lr"]) / (1 - beta_1**n_steps))
