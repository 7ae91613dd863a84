"""Which unit each row of a recorded call belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

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
    """Unit of each row, int64, on the device of the call."""
    axis: int
    """Where the axis of rows was in the recorded input and output."""


def index_calls(
    calls: Sequence[Call], unit_index: UnitIndex, unit_axis: UnitAxis
) -> tuple[list[IndexedCall], dict[str, str]]:
    """Find every call's unit index, one entry per row.

    Returns:
        The calls with their indices, and the parameters of those without an axis of rows: name to
        the reason.

    Raises:
        ValueError: If an index does not fit, or does not say along which axis it runs.
    """
    n_calls: dict[str, int] = defaultdict(int)
    indexed: list[IndexedCall] = []
    without: dict[str, str] = {}
    for call in calls:
        name = next(iter(call.names.values())).rpartition(".")[0]
        index = _find_index(unit_index, name, n_calls[name])
        n_calls[name] += 1
        lengths = call.row_lengths
        axis = 0
        if len(lengths) > 1:
            given = _beginning(unit_axis, name) if isinstance(unit_axis, Mapping) else unit_axis
            axis = _row_axis(name, lengths, len(index) if index.dim() == 1 else 0, given)
        shape = tuple(call.inputs.shape)
        reason = None
        if not lengths:
            reason = f"a call of it saw an input of shape {shape}, which has no axis of rows"
        elif lengths[axis] == 1 and index.dim() == 1 and len(index) > 1:
            reason = (
                f"a call of it saw one row, of shape {shape}, where `unit_index` has {len(index)}: "
                "what all units share cannot be told apart"
            )
        if reason is not None:
            without.update(dict.fromkeys(call.names.values(), reason))
            continue
        if index.dtype != torch.int64 or index.shape != (lengths[axis],):
            raise ValueError(
                f"`unit_index` must be int64 of shape ({lengths[axis]},) for {name!r}, which saw "
                f"{lengths[axis]} rows (axis {axis} of {shape}); got {index.dtype} of shape "
                f"{tuple(index.shape)}; layers with rows of their own need a mapping from module "
                "name to index"
            )
        call = call.with_rows_first(axis)
        indexed.append(IndexedCall(call, index.to(call.inputs.device), axis))
    return indexed, without


def _row_axis(name: str, lengths: tuple[int, ...], n_rows: int, given: int | None) -> int:
    """Return which of several axes is that of the rows: what is given, or else the first."""
    if given is not None:
        if not 0 <= given < len(lengths):
            raise ValueError(
                f"`unit_axis` is {given} for {name!r}, whose input has axes of {lengths} before "
                "its features"
            )
        return given
    alike = [axis for axis, length in enumerate(lengths) if length == n_rows]
    # Along axes of length 1 there is one row, whichever is meant.
    if len(alike) > 1 and n_rows > 1:
        raise ValueError(
            f"`unit_index` has {n_rows} entries, and {name!r} saw an input with axes of {lengths} "
            f"before its features: axes {alike} fit; say which is meant with unit_axis, for "
            f"example unit_axis={alike[0]} or unit_axis={{{name!r}: {alike[0]}}}"
        )
    return 0


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
