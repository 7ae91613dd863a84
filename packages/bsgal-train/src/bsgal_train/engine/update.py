"""One step of the optimizer: loss scaling, clipping, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bsgal_train.engine.weight_average import WeightAverage
from bsgal_train.recipe import OptimizerConfig, Precision

__all__ = ["OptimizerStep"]


class OptimizerStep:
    """Everything between a loss and the weights it changes.

    In `fp16` losses are scaled up before the backward pass, so that small gradients do not vanish;
    where a scaled gradient overflows, the step is left out and the scale is halved.

    Args:
        detector: changed in place.
        optimizer: of its parameters.
        config: limits of the gradient, and the decay of the average.
        precision: of the forward pass.

    Attributes:
        optimizer: as given.
    """

    def __init__(
        self,
        detector: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: OptimizerConfig,
        precision: Precision,
    ) -> None:
        self._detector = detector
        self.optimizer = optimizer
        self._config = config
        device = next(detector.parameters()).device.type
        self._scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
        self._average = WeightAverage(detector, config.ema_decay) if config.ema_decay else None

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite only means that the scale was too large."""
        return self._scaler.is_enabled()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to the parameters'."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's

    def unscaled_gradients(self) -> None:
        """Divide the gradients by the scale; once per step, before anything reads them."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)

    def clip(self) -> Tensor:
        """Limit the gradients and return the norm they had."""
        parameters = [p for p in self._detector.parameters() if p.grad is not None]
        by_value = self._config.clip_type == "value"
        limit = math.inf if by_value else self._config.clip_norm
        norm = nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=False)
        if by_value:
            nn.utils.clip_grad_value_(parameters, self._config.clip_norm)
        return norm

    def apply(self) -> None:
        """Change the weights, and then their average."""
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the detector the averaged weights inside the block, if there is an average."""
        if self._average is None:
            yield
        else:
            with self._average.in_place():
                yield

    def state_dict(self) -> dict[str, Any]:
        """Return scale and average; the optimizer's own state is not among them."""
        return {
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
