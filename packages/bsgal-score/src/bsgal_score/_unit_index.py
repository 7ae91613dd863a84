"""Which unit each row of a recorded call belongs to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import torch
from torch import Tensor

from ._linear_maps import rows_first
from ._recorder import Call

REFERENCE = -1
"""Unit index of rows that are no unit's but feed the cache: real data."""
IGNORED = -2
"""Unit index of rows that count nowhere."""

UnitIndex = Tensor | Mapping[str, Tensor | Sequence[Tensor]]
UnitAxis = int | Mapping[str, int] | None

T = TypeVar("T")


@dataclass(frozen=True)
class IndexedCall:
    """A recorded call, its rows along the first axis."""

    call: Call
    index: Tensor
    """Unit of each row, int64 (rows,), on the device of the call."""
    axes: range
    """Which axes of the recorded input and output became that of the rows."""
    lengths: tuple[int, ...]
    """Their lengths."""

    def rows_of(self, outputs: Tensor) -> Tensor:
        """Return a tensor laid out like the output, or its base, with its rows first."""
        whole = outputs.reshape(self.call.output_shape)
        return rows_first(whole, self.axes)

    def mask(self, units: Tensor) -> Tensor:
        """Return where the rows of some units are: bool, broadcasts over the recorded output."""
        own = torch.isin(self.index, units.to(self.index.device)).view(self.lengths)
        after = len(self.call.output_shape) - self.axes.stop
        return own.view((1,) * self.axes.start + self.lengths + (1,) * after)


def index_calls(
    calls: Sequence[Call], unit_index: UnitIndex, unit_axis: UnitAxis
) -> tuple[list[IndexedCall], dict[str, str]]:
    """Find every call's unit index, one entry per row.

    Returns:
        The calls with their indices, and the parameters of those without an axis of rows: name to
        the reason.

    Raises:
        ValueError: If an index does not fit, or does not say along which axes it runs.
    """
    n_calls: dict[str, int] = defaultdict(int)
    indexed: list[IndexedCall] = []
    without: dict[str, str] = {}
    for call in calls:
        name = next(iter(call.names.values())).rpartition(".")[0]
        index = _find_index(unit_index, name, n_calls[name])
        n_calls[name] += 1
        lengths = call.row_lengths
        given = _beginning(unit_axis, name) if isinstance(unit_axis, Mapping) else unit_axis
        axes = _row_axes(name, lengths, tuple(index.shape), given)
        found = tuple(lengths[axis] for axis in axes)
        shape = tuple(call.inputs.shape)
        reason = None
        if not lengths:
            reason = f"a call of it saw an input of shape {shape}, which has no axis of rows"
        elif len(found) == index.dim() and any(
            one == 1 and many > 1 for one, many in zip(found, index.shape, strict=True)
        ):
            reason = (
                f"a call of it saw one row, of shape {shape}, where `unit_index` has "
                f"{index.numel()}: what all units share cannot be told apart"
            )
        if reason is not None:
            without.update(dict.fromkeys(call.names.values(), reason))
            continue
        if index.dtype != torch.int64 or index.shape != found:
            raise ValueError(_misfit(name, index, axes, lengths, shape))
        indexed.append(
            IndexedCall(
                call.with_rows_first(axes), index.flatten().to(call.inputs.device), axes, found
            )
        )
    return indexed, without


def _misfit(
    name: str, index: Tensor, axes: range, lengths: tuple[int, ...], shape: tuple[int, ...]
) -> str:
    found = tuple(lengths[axis] for axis in axes)
    where = f"axis {axes.start}" if len(axes) == 1 else f"axes {list(axes)}"
    return (
        f"`unit_index` must be int64 of shape {found} for {name!r}, which saw "
        f"{math.prod(found)} rows ({where} of {shape}); got {index.dtype} of shape "
        f"{tuple(index.shape)}; layers with rows of their own need a mapping from module name to "
        "index"
    )


def _row_axes(
    name: str, lengths: tuple[int, ...], index_shape: tuple[int, ...], given: int | None
) -> range:
    """Return which axes are those of the rows: from the one that is given, or else the first.

    An index with several axes runs along as many, in its own order.
    """
    if len(lengths) < 2:
        return range(len(lengths))
    n_axes = max(len(index_shape), 1)
    if given is not None:
        if not 0 <= given <= len(lengths) - min(n_axes, len(lengths)):
            raise ValueError(
                f"`unit_axis` is {given} for {name!r}, whose input has axes of {lengths} before "
                f"its features, and `unit_index` has {n_axes}"
            )
        return range(given, min(given + n_axes, len(lengths)))
    fitting = [
        list(axes)
        for axes in permutations(range(len(lengths)), n_axes)
        if tuple(lengths[axis] for axis in axes) == index_shape
    ]
    # Along axes of length 1 there is one row, whichever is meant.
    if len(fitting) > 1 and math.prod(index_shape) > 1:
        alike = fitting if n_axes > 1 else [first for (first,) in fitting]
        what = f"shape {index_shape}" if n_axes > 1 else f"{index_shape[0]} entries"
        raise ValueError(
            f"`unit_index` has {what}, and {name!r} saw an input with axes of {lengths} before its "
            f"features: axes {alike} fit; say which is meant by the first of them, for example "
            f"unit_axis={fitting[0][0]} or unit_axis={{{name!r}: {fitting[0][0]}}}"
        )
    return range(min(n_axes, len(lengths)))


def _find_index(unit_index: UnitIndex, name: str, n_calls_before: int) -> Tensor:
    found: Tensor | Sequence[Tensor] | None
    found = _beginning(unit_index, name) if isinstance(unit_index, Mapping) else unit_index
    if found is None:
        assert isinstance(unit_index, Mapping)
        raise ValueError(f"`unit_index` has no entry for {name!r}; its keys are {list(unit_index)}")
    if isinstance(found, Tensor):
        return found
    if n_calls_before >= len(found):
        raise ValueError(
            f"`unit_index` lists {len(found)} calls of {name!r}, which was called more often"
        )
    return found[n_calls_before]


def _beginning(values: Mapping[str, T], name: str) -> T | None:
    """Return the value of the longest key that `name` begins with, module by module."""
    beginnings = [key for key in values if f"{name}.".startswith(f"{key}." if key else "")]
    return values[max(beginnings, key=len)] if beginnings else None
