"""The step-aware form: what the optimizer will make of a gradient in its next step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ._restore import restored
from ._types import TensorMetric


class StepModel:
    """The first-order effect of a gradient on the next step of a live optimizer.

    Adding k to the gradient of a step moves the weights by -S k more, to first order, with

        SGD    S = lr·(1 - dampening), times 1 + momentum·(1 - dampening) under Nesterov
               (no dampening before there is momentum)
        Adam   S = lr·(1 - β₁) / (1 - β₁ᵗ⁺¹) / (√v̂ + ε), with v̂ the corrected second moment of now

    so ⟨c, S k⟩ is the predicted drop of the reference loss, in loss units, that is due to having
    the candidate in that step. Left out: the change that k makes to v̂ (a share 1 - β₂), gradient
    clipping, what momentum carries into later steps, and curvature.

    Args:
        optimizer: SGD, Adam or AdamW. Read anew each time, so learning-rate schedules are followed.
        unit_weight: Factor between the loss whose gradient is scored and its share of the training
            loss; 1 if the candidate's loss is normalised as in training.

    Raises:
        TypeError: If the optimizer is of another kind.
        ValueError: If it maximises.
    """

    def __init__(self, optimizer: Optimizer, *, unit_weight: float = 1.0) -> None:
        # By exact type: a subclass may take other steps.
        if type(optimizer) not in (SGD, Adam, AdamW):
            raise TypeError(
                f"`optimizer` must be SGD, Adam or AdamW, got {type(optimizer).__name__}; use the "
                "forms 'cosine' or 'dot'"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError("`optimizer` maximises; scores are about lowering a loss")
        self.optimizer = optimizer
        self.unit_weight = float(unit_weight)

    def metric(self, parameters: Mapping[str, Tensor]) -> list[TensorMetric]:
        """Return the diagonal S of each parameter; zero for those the optimizer does not move.

        Args:
            parameters: Name to parameter; the optimizer's own objects.

        Raises:
            ValueError: If Adam has taken no step on a parameter yet, or nothing is moved at all.
        """
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        if not any(id(parameter) in groups for parameter in parameters.values()):
            raise ValueError("the optimizer moves none of the cached parameters")
        return [
            self._tensor_metric(name, parameter, groups[id(parameter)])
            if id(parameter) in groups
            else TensorMetric(scale=0.0)
            for name, parameter in parameters.items()
        ]

    def directions(
        self, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return S x for tensors x by name; a copy of them in float32 (or float64)."""
        scaled = {}
        metrics = dict(zip(parameters, self.metric(parameters), strict=True))
        for name, tensor in tensors.items():
            metric = metrics[name]
            x = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            if metric.second_moment is not None:
                v = metric.second_moment.to(x.dtype)
                x.div_((v / metric.bias_correction).sqrt_().add_(metric.eps))
            scaled[name] = x.mul_(metric.scale)
        return scaled

    @contextmanager
    def look_ahead(self, model: nn.Module | None = None) -> Iterator[None]:
        """Take the optimizer's step on the gradients of now, and take it back when the block ends.

        A reference gradient taken inside belongs to the weights after the step that is taken
        without the candidate; it holds the interplay of the candidate with the rest of the batch.

        Args:
            model: Restore its buffers too.
        """
        with restored(self.optimizer, model):
            self.optimizer.step()
            yield

    def _tensor_metric(
        self, name: str, parameter: Tensor, group: Mapping[str, Any]
    ) -> TensorMetric:
        state = self.optimizer.state.get(parameter, {})
        scale = float(group["lr"]) * self.unit_weight
        if isinstance(self.optimizer, SGD):
            started = state.get("momentum_buffer") is not None
            taken_in = 1.0 - group["dampening"] if group["momentum"] and started else 1.0
            if group["nesterov"]:
                return TensorMetric(scale * (1.0 + group["momentum"] * taken_in))
            return TensorMetric(scale * taken_in)
        if not state:
            raise ValueError(
                f"Adam has taken no step on {name!r} yet, so there are no second moments; score "
                "with 'cosine' until it has"
            )
        n_steps = float(state["step"])
        beta_1, beta_2 = (float(beta) for beta in group["betas"])
        return TensorMetric(
            scale=scale * (1 - beta_1) / (1 - beta_1 ** (n_steps + 1)),
            second_moment=state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"],
            bias_correction=1 - beta_2**n_steps,
            eps=float(group["eps"]),
        )
