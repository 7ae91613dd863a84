"""Squared norms of unit gradients from Gram tiles: Σ over pairs of rows of (a·a')(δ·δ')."""
# Just-in-time functions annotate compile-time constants only.
# mypy: disallow-incomplete-defs=false

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager.ghost import sum_by_unit

# Units are small (tens of rows), so tiles are too. Fixed: they fix the order of summation.
BLOCK_ROWS = 32
BLOCK_COLUMNS = 64
N_WARPS = 4


@triton.jit
def _gram_tile(
    rows_ptr,
    row_stride,
    n_columns,
    left,
    left_inside,
    right,
    right_inside,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    gram = tl.zeros([BLOCK_ROWS, BLOCK_ROWS], dtype=tl.float32)
    for start in range(0, n_columns, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < n_columns
        x = tl.load(
            rows_ptr + left[:, None] * row_stride + columns[None, :],
            mask=left_inside[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        y = tl.load(
            rows_ptr + right[None, :] * row_stride + columns[:, None],
            mask=right_inside[None, :] & inside[:, None],
            other=0.0,
        ).to(tl.float32)
        gram += tl.dot(x, y, input_precision="ieee")
    return gram


@triton.jit
def _ghost_sqnorm_kernel(
    inputs_ptr,
    output_grads_ptr,
    order_ptr,
    tiles_ptr,
    partials_ptr,
    n_inputs,
    n_outputs,
    inputs_stride,
    output_grads_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write one number per pair of row tiles of a unit.

    Global traffic: each row of inputs and output gradients is read once per tile of its unit, twice
    over; for units of at most one tile that is two reads of everything.
    """
    tile = tl.program_id(0).to(tl.int64)
    # Columns of the table: unit, first left row, first right row, end of the unit.
    left_start = tl.load(tiles_ptr + tile * 4 + 1)
    right_start = tl.load(tiles_ptr + tile * 4 + 2)
    end = tl.load(tiles_ptr + tile * 4 + 3)
    left_place = left_start + tl.arange(0, BLOCK_ROWS)
    right_place = right_start + tl.arange(0, BLOCK_ROWS)
    left_inside = left_place < end
    right_inside = right_place < end
    left = tl.load(order_ptr + left_place, mask=left_inside, other=0)
    right = tl.load(order_ptr + right_place, mask=right_inside, other=0)
    inputs_gram = _gram_tile(
        inputs_ptr, inputs_stride, n_inputs, left, left_inside, right, right_inside,
        BLOCK_ROWS, BLOCK_COLUMNS,
    )  # fmt: skip
    output_grads_gram = _gram_tile(
        output_grads_ptr, output_grads_stride, n_outputs, left, left_inside, right, right_inside,
        BLOCK_ROWS, BLOCK_COLUMNS,
    )  # fmt: skip
    total = tl.sum(tl.sum(inputs_gram * output_grads_gram, axis=1), axis=0)
    # A pair of different tiles stands for its mirror image too.
    total = tl.where(left_start == right_start, total, 2.0 * total)
    tl.store(partials_ptr + tile, total)


def ghost_sqnorm_triton(
    inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> Tensor:
    """Return ‖Σ over a unit's rows of δ aᵀ‖²; arguments as in the public operation."""
    inputs, output_grads = (
        tensor if tensor.stride(1) == 1 else tensor.contiguous()
        for tensor in (inputs, output_grads)
    )
    device = inputs.device
    units = unit_index.cpu()
    order = torch.argsort(units, stable=True)
    tiles = _tile_table(units[order].numpy())
    if not len(tiles):
        return torch.zeros(n_units, dtype=torch.float64, device=device)
    partials = torch.empty(len(tiles), dtype=torch.float32, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else torch.device(device):
        _ghost_sqnorm_kernel[(len(tiles),)](
            inputs,
            output_grads,
            order.to(device),
            tiles.to(device),
            partials,
            inputs.shape[1],
            output_grads.shape[1],
            inputs.stride(0),
            output_grads.stride(0),
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_COLUMNS=BLOCK_COLUMNS,
            num_warps=N_WARPS,
        )
    # A squared norm that rounding carried below zero is zero.
    return sum_by_unit(partials, tiles[:, 0], n_units).clamp_(min=0)


def _tile_table(sorted_units: np.ndarray) -> Tensor:
    """List the pairs of row tiles of every unit, the left tile never after the right one."""
    units, starts, counts = np.unique(sorted_units, return_index=True, return_counts=True)
    table = [
        (unit, left, right, start + count)
        for unit, start, count in zip(units, starts, counts, strict=True)
        if unit >= 0
        for left in range(start, start + count, BLOCK_ROWS)
        for right in range(left, start + count, BLOCK_ROWS)
    ]
    return torch.tensor(table, dtype=torch.int64).reshape(-1, 4)
