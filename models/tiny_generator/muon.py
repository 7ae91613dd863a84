"""An optimizer for convolutions: momentum whose matrices are made orthogonal.

The method is Muon's (https://github.com/KellerJordan/Muon), scaled to the step size of AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

_MOMENTUM = 0.95
_STEP_RMS = 0.2  # root mean square of an AdamW step, relative to its learning rate


class Muon(torch.optim.Optimizer):
    """Update weights by orthogonalised momentum, and vectors by the sign of theirs."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step; closures are not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(_MOMENTUM).add_(parameter.grad)
                ahead = parameter.grad + _MOMENTUM * momentum
                if parameter.ndim == 1:
                    direction = ahead.sign()
                else:
                    matrix = ahead.reshape(len(ahead), -1)
                    direction = _orthogonalised(matrix) * math.sqrt(max(matrix.shape))
                parameter.sub_(group["lr"] * _STEP_RMS * direction.view_as(parameter))


def _orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Push all singular values of a matrix to about 1, by five Newton-Schulz steps."""
    x = matrix / (matrix.norm() + 1e-7)
    if is_tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x
