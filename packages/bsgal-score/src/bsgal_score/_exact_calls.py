"""Calls of whole modules of other kinds, which are run again for every unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from ._graph import output_edge, sources_of
from ._linear_maps import check_version, exact_convolutions, version_of, widened
from .eager.ghost import compute_dtype
from .errors import UnsupportedLayerError

Slots = dict[int | str, int]
"""Which arguments hold rows, by position or name, and along which axis."""


@dataclass(frozen=True)
class Layout:
    """Where the rows of a module's call lie."""

    arguments: Slots
    outputs: tuple[int, ...] | None
    """Axis of the rows in each tensor that is returned; None where one is, rows first."""

    def row_tensors(
        self, positional: Sequence[Any], keywords: Mapping[str, Any]
    ) -> Iterator[tuple[Tensor, int]]:
        """Yield the arguments that hold rows, each with the axis of them."""
        for slot, axis in self.arguments.items():
            value = positional[slot] if isinstance(slot, int) else keywords[slot]
            for one in _tensors(value):
                yield one, axis

    def join(self, outputs: Any) -> Tensor:
        """Put what was returned into one tensor with the rows first."""
        if self.outputs is None:
            whole: Tensor = outputs
            return whole
        return torch.cat(
            [
                one.movedim(axis, 0).flatten(1)
                for one, axis in zip(_tensors(outputs), self.outputs, strict=True)
            ],
            dim=1,
        )

    def split(self, joined: Tensor, outputs: Any) -> Any:
        """Undo `join`: return the parts of a joined tensor arranged like `outputs`."""
        axes = iter(self.outputs or ())
        start = 0

        def part(like: Any) -> Any:
            nonlocal start
            if isinstance(like, tuple):
                return tuple(part(one) for one in like)
            if not isinstance(like, Tensor):
                return like
            axis = next(axes)
            shape = like.movedim(axis, 0).shape
            stop = start + like.numel() // len(joined)
            own = joined[:, start:stop].reshape(shape).movedim(0, axis).to(like.dtype)
            start = stop
            return own

        return part(outputs)


def layout_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any
) -> Layout | str:
    """Find where the rows of a call lie, or say why it cannot be made again for some of them."""
    for kind, find in _OWN_LAYOUTS.items():
        if isinstance(module, kind):
            return find(module, args, kwargs, outputs)
    if not isinstance(outputs, Tensor):
        return f"returned {type(outputs).__name__}"
    if not (args and isinstance(args[0], Tensor) and args[0].dim() > 0):
        return "was not called with a tensor of rows first"
    others = [one for one in (*args[1:], *kwargs.values()) if isinstance(one, Tensor)]
    if any(one.dim() > 0 and len(one) == len(args[0]) for one in others):
        return "was called with a second tensor that has an entry for every row"
    return Layout({0: 0}, None)


def _attention(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any
) -> Layout | str:
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    slots: dict[str, int | str] = {name: name for name in kwargs}
    slots |= {name: number for number, name in enumerate(names[: len(args)])}
    given = {name: args[s] if isinstance(s, int) else kwargs[s] for name, s in slots.items()}
    if module.training and module.dropout > 0:
        return "drops out at random"
    if given["query"].dim() != 3:
        return "was called without an axis of rows"
    mask = given.get("attn_mask")
    if mask is not None and mask.dim() == 3:
        return "was called with an attention mask of its own for every row"
    axis = 0 if module.batch_first else 1
    places = {"query": axis, "key": axis, "value": axis, "key_padding_mask": 0}
    arguments = {slots[n]: places[n] for n in places if isinstance(given.get(n), Tensor)}
    return Layout(arguments, (axis, 0)[: len(list(_tensors(outputs)))])


def _recurrence(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any
) -> Layout | str:
    if module.training and module.dropout > 0 and module.num_layers > 1:
        return "drops out at random"
    if args and not isinstance(args[0], Tensor):
        return f"was called with a {type(args[0]).__name__}"
    if not args or args[0].dim() != 3:
        return "was not called with a tensor of rows first"
    axis = 0 if module.batch_first else 1
    slots: Slots = {0: axis}
    if len(args) > 1 and args[1] is not None:
        slots[1] = 1
    if kwargs.get("hx") is not None:
        slots["hx"] = 1
    return Layout(slots, (axis, 1, 1)[: len(list(_tensors(outputs)))])


_OWN_LAYOUTS: dict[type[nn.Module], Callable[..., Layout | str]] = {
    nn.MultiheadAttention: _attention,
    nn.RNNBase: _recurrence,
}
"""Modules that know where their rows are, and return several tensors."""


@dataclass(frozen=True)
class ExactCall:
    """One recorded call of a module of another kind."""

    module: nn.Module
    positional: tuple[Any, ...]
    keywords: dict[str, Any]
    layout: Layout
    names: dict[str, str]
    """Parameter name in the module to name in the cache."""
    edge: GradientEdge
    output_shape: tuple[int, ...]
    sources: frozenset[Node]
    versions: tuple[int | None, ...]
    """Of the tensors of rows when the call was made."""

    @property
    def inputs(self) -> Tensor:
        """The first tensor of rows, rows first."""
        tensor, axis = next(self.layout.row_tensors(self.positional, self.keywords))
        return tensor.movedim(axis, 0)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Lengths of the axes that may be that of the rows.

        All but the last, if there are two; one where the module says which it is.
        """
        shape = tuple(self.inputs.shape)
        return shape[:-1] if len(shape) > 1 and self.layout.outputs is None else shape[:1]

    def with_rows_first(self, axes: range) -> ExactCall:
        """Return the call; only the first axis can be that of the rows."""
        if axes != range(1):
            raise ValueError(
                "other_layers='exact' needs rows along the first axis, and `unit_axis` and "
                f"`unit_index` name axes {list(axes)} for {sorted(self.names.values())}"
            )
        return self

    def check_input(self) -> None:
        """Raise `ChangedInputError` if a tensor of rows was written to since the call."""
        tensors = self.layout.row_tensors(self.positional, self.keywords)
        for (tensor, _), version in zip(tensors, self.versions, strict=True):
            check_version(tensor, version, self.names.values())

    def gradients(self, rows: Tensor, output_grads: Tensor) -> dict[str, Tensor]:
        """Return the gradient that some rows give to the module's parameters."""
        dtype = compute_dtype(output_grads)

        def chosen(slot: int | str, value: Any) -> Any:
            axis = self.layout.arguments.get(slot)
            if isinstance(value, tuple):
                return tuple(chosen(slot, one) for one in value)
            if axis is not None:
                value = value.index_select(axis, rows.to(value.device))
            return widened(value, dtype)

        # All of it in one dtype: under autocast the inputs may be narrower than the parameters.
        state = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        state = {name: widened(tensor.detach(), dtype) for name, tensor in state.items()}
        with torch.enable_grad(), exact_convolutions():
            leaves = {role: state[role].requires_grad_() for role in self.names}
            outputs = self.layout.join(
                torch.func.functional_call(
                    self.module,
                    state,
                    tuple(chosen(slot, value) for slot, value in enumerate(self.positional)),
                    {slot: chosen(slot, value) for slot, value in self.keywords.items()},
                )
            )
            gradients = torch.autograd.grad(
                outputs, list(leaves.values()), output_grads.to(outputs.dtype)
            )
        return dict(zip(self.names.values(), gradients, strict=True))


def exact_call(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outputs: Any,
    names: Mapping[str, str],
) -> tuple[ExactCall | None, Any]:
    """Record a module's call that has just been made.

    Args:
        module: Maps rows to rows.
        args: Positional arguments of the call.
        kwargs: The others.
        outputs: What it returned.
        names: Parameter name in the module to name in the cache.

    Returns:
        The call, None where nothing is to be trained; and what the module is to return in place of
        `outputs`: the same, where several tensors are returned by way of one, at which their
        gradients can be had.

    Raises:
        UnsupportedLayerError: If the call cannot be made again for some of its rows.
    """
    layout = layout_of(module, args, kwargs, outputs)
    if isinstance(layout, str):
        raise UnsupportedLayerError(
            f"{sorted(names.values())} cannot be scored with other_layers='exact', which runs "
            "modules that map one tensor of rows to a tensor once more for every unit: "
            f"{type(module).__name__} {layout}; pass other_layers='skip', or exclude them from "
            "the cache"
        )
    if not any(one.requires_grad for one in _tensors(outputs)):
        return None, outputs
    joined = layout.join(outputs)
    given = (*args, *kwargs.values())
    call = ExactCall(
        module, _detached(args), {name: _detached(one) for name, one in kwargs.items()}, layout,
        dict(names), output_edge(joined), tuple(joined.shape), sources_of(_tensors(given)),
        tuple(version_of(tensor) for tensor, _ in layout.row_tensors(args, kwargs)),
    )  # fmt: skip
    return call, outputs if layout.outputs is None else layout.split(joined, outputs)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(map(_detached, value)) if isinstance(value, tuple) else value
