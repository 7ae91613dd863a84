"""Squared norms of units' gradients in layers that are no plain matrix product, many at a time.

A convolution is a matrix product over positions, once its input is unfolded, so ghost norms hold;
normalisations and biases have gradients so small that every row can have its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import ops
from ._linear_maps import LinearCall
from .eager.ghost import sum_by_unit

# Unfolded elements in memory at a time: 16 MB in fp32.
_BLOCK_ELEMENTS = 1 << 22

Rows = tuple[LinearCall, Tensor, Tensor]
"""A call, the unit of each of its rows (negative: none), and the gradients in its outputs."""


def unit_sqnorms(layer: Sequence[Rows], n_units: int, impl: ops.Implementation) -> Tensor | None:
    """Return ‖g_i‖² of each unit over all calls of one layer, float64 (n_units,) on the CPU.

    None where gradients should be formed one after the other instead: for other kinds of layers,
    and where a single unit fills a block, so that there is nothing to gain.
    """
    first = layer[0][0]
    if not (first.is_convolution or first.is_normalisation):
        return None
    total = torch.zeros(n_units, dtype=torch.float64)
    if "weight" in first.names and first.is_convolution:
        weight = _unfolded_sqnorms(layer, n_units, impl)
        if weight is None:
            return None
        total += weight
    sums: dict[str, Tensor] = {}
    for call, index, output_grads in layer:
        rows = (index >= 0).nonzero().flatten()
        for name, gradients in call.row_gradients(rows, output_grads[rows]).items():
            by_unit = sum_by_unit(gradients, index[rows], n_units).cpu()
            sums[name] = sums[name] + by_unit if name in sums else by_unit
    for by_unit in sums.values():
        total += by_unit.square().flatten(1).sum(dim=1)
    return total


def _unfolded_sqnorms(
    layer: Sequence[Rows], n_units: int, impl: ops.Implementation
) -> Tensor | None:
    sizes = torch.zeros(n_units, dtype=torch.int64)
    for call, index, grads in layer:
        size = call.unfolded_size(grads)
        if size is None:
            return None
        sizes += size * torch.bincount(index[index >= 0].cpu(), minlength=n_units)
    if int(sizes.max()) > _BLOCK_ELEMENTS:
        return None
    total = torch.zeros(n_units, dtype=torch.float64)
    for start, stop in _blocks(sizes.tolist()):
        inputs: list[Tensor] = []
        output_grads: list[Tensor] = []
        indices: list[Tensor] = []
        n_groups = 1
        for call, index, grads in layer:
            rows = ((index >= start) & (index < stop)).nonzero().flatten()
            if not len(rows):
                continue
            # (rows, groups, positions, columns): every group has a matrix of its own.
            a, d = call.unfold(rows, grads[rows])
            n_groups = a.shape[1]
            own = (index[rows] - start)[:, None] * n_groups
            own = own + torch.arange(n_groups, device=own.device)
            indices.append(own[..., None].expand(-1, -1, a.shape[2]).flatten())
            inputs.append(a.flatten(0, 2))
            output_grads.append(d.flatten(0, 2))
        if inputs:
            found = ops.ghost_sqnorm(
                torch.cat(inputs),
                torch.cat(output_grads),
                torch.cat(indices),
                (stop - start) * n_groups,
                impl=impl,
            )
            total[start:stop] = found.cpu().view(-1, n_groups).sum(dim=1)
    return total


def _blocks(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Cut the units into runs that fill a block at most."""
    start, filled = 0, 0
    for unit, size in enumerate(sizes):
        if filled + size > _BLOCK_ELEMENTS:
            yield start, unit
            start, filled = unit, 0
        filled += size
    yield start, len(sizes)
