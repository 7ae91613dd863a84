"""Dot products and norms of all units' gradients over one layer, from its recorded calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from ._linear_maps import LinearCall
from ._recorder import Call
from ._step_model import StepModel
from ._unit_sqnorms import unit_sqnorms
from .eager.ghost import sum_by_unit


@dataclass(frozen=True)
class Reached:
    """A recorded call that the loss depends on."""

    call: Call
    index: Tensor
    """Unit of each row."""
    output_grads: Tensor


def gradients(reached: Sequence[Reached], unit: int) -> dict[str, Tensor]:
    """Sum up the gradient that a unit's rows give to each parameter over all calls."""
    total: dict[str, Tensor] = {}
    for one in reached:
        chosen = (one.index == unit).nonzero().flatten()
        if not len(chosen):
            continue
        for name, gradient in one.call.gradients(chosen, one.output_grads[chosen]).items():
            total[name] = total[name] + gradient if name in total else gradient
    return total


def score_layer(
    layer: Sequence[Reached],
    directions: Sequence[Mapping[str, Tensor]],
    n_units: int,
    *,
    norms: bool,
    impl: ops.Implementation,
) -> tuple[Tensor, Tensor]:
    """Score the calls that share their parameters.

    Args:
        layer: The calls; those without a unit's row add nothing.
        directions: Tensors by parameter name to multiply gradients with.
        n_units: Number of units.
        norms: Compute norms.
        impl: As in `bsgal_score.ops`.

    Returns:
        Dot products (n_directions, n_units) and squared norms (n_units,), float64 on the CPU.
        Without `norms`, 1 in place of the norm where a gradient reached a unit's rows.
    """
    layer = [one for one in layer if one.output_grads.numel() and bool((one.index >= 0).any())]
    if not layer:
        nothing = torch.zeros(n_units, dtype=torch.float64)
        return nothing.expand(len(directions), -1), nothing
    calls = [one.call for one in layer if isinstance(one.call, LinearCall)]
    if len(calls) < len(layer) or len({call.function for call in calls}) > 1:
        return _unit_by_unit(layer, directions, n_units, impl)
    if calls[0].is_matrix_product:
        dots = _matrix_dots(layer, directions, n_units, impl)
        return dots, _matrix_sqnorm(layer, n_units, impl) if norms else _touched(layer, n_units)
    if norms:
        rows = [(c, one.index, one.output_grads) for c, one in zip(calls, layer, strict=True)]
        sqnorm = unit_sqnorms(rows, n_units, impl)
        if sqnorm is None:
            return _unit_by_unit(layer, directions, n_units, impl)
    else:
        sqnorm = _touched(layer, n_units)
    return torch.stack([_row_by_row(layer, d, n_units) for d in directions]), sqnorm


def step_effects(
    layer: Sequence[Reached],
    step: StepModel,
    reference: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    n_units: int,
) -> Tensor:
    """Return the step model's effect of each unit over one layer, one unit's gradient at a time."""
    effects = torch.zeros(n_units, dtype=torch.float64)
    for unit in _units(layer):
        effects[unit] = step.effect(reference, gradients(layer, unit), parameters)
    return effects


def _units(layer: Sequence[Reached]) -> list[int]:
    units = torch.cat([one.index.cpu() for one in layer])
    found: list[int] = torch.unique(units[units >= 0]).tolist()
    return found


def _touched(layer: Sequence[Reached], n_units: int) -> Tensor:
    """Return 1 for units with an output gradient that is not zero, else 0."""
    touched = torch.zeros(n_units, dtype=torch.float64)
    for one in layer:
        rows = one.output_grads.flatten(1).ne(0).any(dim=1)
        touched[one.index[rows & (one.index >= 0)].cpu()] = 1
    return touched


def _matrix_dots(
    layer: Sequence[Reached],
    directions: Sequence[Mapping[str, Tensor]],
    n_units: int,
    impl: ops.Implementation,
) -> Tensor:
    """Score z = W a + b by ghost products; b is the weight of an input that is always 1."""
    dots = torch.zeros(len(directions), n_units, dtype=torch.float64)
    for role, name in layer[0].call.names.items():
        for dot, direction in zip(dots, directions, strict=True):
            for a, d, index in map(_positions, layer):
                a = a if role == "weight" else torch.ones_like(a[:, :1])
                weights = direction[name].reshape(-1, a.shape[1])
                dot += ops.ghost_dot(weights, a, d, index, n_units, impl=impl).cpu()
    return dots


def _matrix_sqnorm(layer: Sequence[Reached], n_units: int, impl: ops.Implementation) -> Tensor:
    sqnorm = torch.zeros(n_units, dtype=torch.float64)
    for role in layer[0].call.names:
        rows = [
            (a if role == "weight" else torch.ones_like(a[:, :1]), d, index)
            for a, d, index in map(_positions, layer)
        ]
        # A unit's rows in different calls belong to one gradient.
        joined = rows[0] if len(rows) == 1 else _join(rows)
        sqnorm += ops.ghost_sqnorm(*joined, n_units, impl=impl).cpu()
    return sqnorm


def _unit_by_unit(
    layer: Sequence[Reached],
    directions: Sequence[Mapping[str, Tensor]],
    n_units: int,
    impl: ops.Implementation,
) -> tuple[Tensor, Tensor]:
    """Form the layer's gradient of one unit after the other."""
    dots = torch.zeros(len(directions), n_units, dtype=torch.float64)
    sqnorm = torch.zeros(n_units, dtype=torch.float64)
    for unit in _units(layer):
        own = gradients(layer, unit)
        for dot, direction in zip(dots, directions, strict=True):
            sums = ops.cache_update_dot(
                [direction[name] for name in own], None, list(own.values()), impl=impl
            )
            dot[unit], sqnorm[unit] = sums.dot, sums.candidate_sqnorm
    return dots, sqnorm


def _row_by_row(layer: Sequence[Reached], directions: Mapping[str, Tensor], n_units: int) -> Tensor:
    """Sum up the dot products of single rows: one more forward call of the layer."""
    dot = torch.zeros(n_units, dtype=torch.float64)
    for one in layer:
        assert isinstance(one.call, LinearCall)
        chosen = (one.index >= 0).nonzero().flatten()
        row_dots = one.call.row_dots(directions, chosen, one.output_grads[chosen])
        dot += sum_by_unit(row_dots, one.index[chosen], n_units).cpu()
    return dot


def _positions(one: Reached) -> tuple[Tensor, Tensor, Tensor]:
    """View a call's rows as inputs (N, n_inputs), output gradients and their units, all positions.

    Nothing is copied if the inputs are contiguous; rows that are no unit's stay in.
    """
    inputs = one.call.inputs
    per_row = math.prod(inputs.shape[1:-1])
    return (
        inputs.flatten(0, -2),
        one.output_grads.flatten(0, -2),
        one.index if per_row == 1 else one.index.repeat_interleave(per_row),
    )


def _join(rows: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Put the units' rows of several calls behind one another."""
    chosen = [(index >= 0).nonzero().flatten() for _, _, index in rows]
    inputs, output_grads, index = (
        torch.cat([tensors[i][own] for tensors, own in zip(rows, chosen, strict=True)])
        for i in range(3)
    )
    return inputs, output_grads, index
