"""Exponential moving average of a detector's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "averaged_tensors"]


class WeightAverage:
    """Follow a detector's weights: average <- decay x average + (1 - decay) x weights.

    Made once the weights the training starts from are loaded, and updated after each step of the
    optimizer, so it never holds weights that were not trained on. It is the same in all processes
    that hold the same weights.

    Args:
        detector: whose parameters and floating-point buffers are followed.
        decay: weight of the old average, in [0, 1).
    """

    def __init__(self, detector: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), got {decay}")
        self._detector = detector
        self._decay = decay
        self._values = {
            name: value.detach().clone() for name, value in averaged_tensors(detector).items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take a step of the optimizer into account."""
        current = averaged_tensors(self._detector)
        averages, values = ([one[name] for name in current] for one in (self._values, current))
        torch._foreach_lerp_(averages, values, 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the detector the averaged weights inside the block."""
        current = averaged_tensors(self._detector)
        kept = {name: value.detach().clone() for name, value in current.items()}
        self._fill(self._values)
        try:
            yield
        finally:
            self._fill(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by the names of the detector's state dict."""
        return dict(self._values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: it is of another detector.
        """
        if state.keys() != self._values.keys():
            raise ValueError("the stored average is of another detector")
        for name, value in state.items():
            self._values[name].copy_(value)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, value in averaged_tensors(self._detector).items():
            value.copy_(values[name])


def averaged_tensors(detector: nn.Module) -> dict[str, Tensor]:
    """Return what `WeightAverage` follows: the floating-point entries of the state dict."""
    return {
        name: value for name, value in detector.state_dict().items() if value.is_floating_point()
    }
