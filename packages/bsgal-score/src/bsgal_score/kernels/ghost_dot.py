"""Ghost dot products: per unit the sum of δᵀ C a over its rows, with C a in registers only."""
# Just-in-time functions annotate compile-time constants only.
# mypy: disallow-incomplete-defs=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager.ghost import sum_by_unit

# A tile of rows by outputs stays in registers: 64 x 64 fp32 sums are 32 per thread of 4 warps.
# Fixed, since the tiles fix the order of summation, hence the bits.
BLOCK_ROWS = 64
BLOCK_OUTPUTS = 64
BLOCK_INPUTS = 32
N_WARPS = 4


@triton.jit
def _ghost_dot_kernel(
    weights_ptr,
    inputs_ptr,
    output_grads_ptr,
    partials_ptr,
    n_rows,
    n_inputs,
    n_outputs,
    weights_stride,
    inputs_stride,
    output_grads_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """Write one number per row: the part of δᵀ C a that belongs to one tile of outputs.

    Global traffic is that of a tiled matrix product of inputs and weights, plus one read of the
    output gradients and 4 bytes per row and tile of outputs; the product itself is never stored.
    """
    row_tile = tl.program_id(0).to(tl.int64)
    output_tile = tl.program_id(1).to(tl.int64)
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    outputs = output_tile * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    row_inside = rows < n_rows
    output_inside = outputs < n_outputs
    product = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], dtype=tl.float32)
    for start in range(0, n_inputs, BLOCK_INPUTS):
        columns = start + tl.arange(0, BLOCK_INPUTS)
        column_inside = columns < n_inputs
        a = tl.load(
            inputs_ptr + rows[:, None] * inputs_stride + columns[None, :],
            mask=row_inside[:, None] & column_inside[None, :],
            other=0.0,
        ).to(tl.float32)
        c = tl.load(
            weights_ptr + outputs[None, :] * weights_stride + columns[:, None],
            mask=output_inside[None, :] & column_inside[:, None],
            other=0.0,
        ).to(tl.float32)
        product += tl.dot(a, c, input_precision="ieee")
    d = tl.load(
        output_grads_ptr + rows[:, None] * output_grads_stride + outputs[None, :],
        mask=row_inside[:, None] & output_inside[None, :],
        other=0.0,
    ).to(tl.float32)
    tl.store(
        partials_ptr + output_tile * n_rows + rows, tl.sum(product * d, axis=1), mask=row_inside
    )


def ghost_dot_triton(
    weights: Tensor, inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> Tensor:
    """Return Σ over a unit's rows of δᵀ C a; arguments as in the public operation."""
    n_rows, n_inputs = inputs.shape
    n_outputs = weights.shape[0]
    weights, inputs, output_grads = (
        tensor if tensor.stride(1) == 1 else tensor.contiguous()
        for tensor in (weights, inputs, output_grads)
    )
    n_row_tiles = triton.cdiv(n_rows, BLOCK_ROWS)
    n_output_tiles = triton.cdiv(n_outputs, BLOCK_OUTPUTS)
    partials = torch.empty((n_output_tiles, n_rows), dtype=torch.float32, device=inputs.device)
    cuda = inputs.device.type == "cuda"
    with torch.cuda.device(inputs.device) if cuda else torch.device(inputs.device):
        _ghost_dot_kernel[(n_row_tiles, n_output_tiles)](
            weights,
            inputs,
            output_grads,
            partials,
            n_rows,
            n_inputs,
            n_outputs,
            weights.stride(0),
            inputs.stride(0),
            output_grads.stride(0),
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_OUTPUTS=BLOCK_OUTPUTS,
            BLOCK_INPUTS=BLOCK_INPUTS,
            num_warps=N_WARPS,
        )
    return sum_by_unit(partials.sum(dim=0, dtype=torch.float64), unit_index, n_units)
