"""Parameters that all rows share as they are: class tokens, position embeddings, biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ._graph import output_edge, sources_of

BROADCASTS: tuple[Callable[..., Any], ...] = (
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.expand, Tensor.expand_as,
)  # fmt: skip
"""Functions whose output has the gradient that they give to a parameter."""


@dataclass(frozen=True)
class BroadcastCall:
    """A recorded sum with a parameter, or expansion of one, that is the same for every row."""

    names: dict[str, str]
    """One role ("weight") to the name in the cache."""
    shape: tuple[int, ...]
    """Of the parameter."""
    edge: GradientEdge
    output_shape: tuple[int, ...]
    sources: frozenset[Node]
    device: torch.device
    axes: range = range(1)
    """Which axes of the output are those of the rows."""

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Tensor,
        name: str,
        parameter: Tensor,
    ) -> BroadcastCall | str:
        """Record a call of one of `BROADCASTS`, or say why it cannot be."""
        if kwargs:
            return f"it is used by {function.__name__} with {sorted(kwargs)}"
        found = cls(
            {"weight": name}, tuple(parameter.shape), output_edge(outputs), tuple(outputs.shape),
            sources_of(one for one in args if one is not parameter), outputs.device,
        )  # fmt: skip
        if sum(one is parameter for one in args) != 1 or not found.row_lengths:
            return f"it is used by {function.__name__} with an entry of its own for every row"
        return found

    @property
    def inputs(self) -> Tensor:
        """Stands for the output, whose rows are the call's; it has no elements of its own."""
        return torch.empty((), device=self.device).expand(self.output_shape)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Lengths of the first axes of the output, along which the parameter is the same."""
        lengths: list[int] = []
        for length, own in zip(self.output_shape, self._padded(), strict=True):
            if own != 1:
                break
            lengths.append(length)
        return tuple(lengths)

    def with_rows_first(self, axes: range) -> BroadcastCall:
        """Return the call with some axes of the output, of `row_lengths`, as its first one."""
        return replace(self, axes=axes)

    def check_input(self) -> None:
        """Do nothing: the gradient is that in the output, whatever the input was."""

    def gradients(self, rows: Tensor, output_grads: Tensor) -> dict[str, Tensor]:
        """Return the gradient that some rows give to the parameter."""
        padded = self._padded()
        rest = padded[: self.axes.start] + padded[self.axes.stop :]
        summed = output_grads.sum(dim=0).sum_to_size(rest)
        return {self.names["weight"]: summed.reshape(self.shape)}

    def _padded(self) -> tuple[int, ...]:
        return (1,) * (len(self.output_shape) - len(self.shape)) + self.shape
