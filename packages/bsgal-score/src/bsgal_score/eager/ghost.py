"""Ghost dot products and norms in torch: sums over a unit's rows, without its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows are taken in blocks whose product with the weights has this many elements: 16 MB in fp32.
_BLOCK_ELEMENTS = 1 << 22


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if one of the tensors is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sum_by_unit(per_row: Tensor, unit_index: Tensor, n_units: int) -> Tensor:
    """Sum values (N,) by unit in float64; rows with a negative unit are left out.

    The sum runs on the CPU, in the order of the rows: `index_add_` on GPUs is not reproducible.
    """
    units = unit_index.cpu()
    counted = units >= 0
    sums = torch.zeros(n_units, dtype=torch.float64)
    sums.index_add_(0, units[counted], per_row.double().cpu()[counted])
    return sums.to(per_row.device)


def ghost_dot_torch(
    weights: Tensor, inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> Tensor:
    """Return Σ over a unit's rows of δᵀ C a; arguments as in the public operation."""
    dtype = compute_dtype(weights, inputs, output_grads)
    c = weights.to(dtype)
    n_outputs, n_inputs = c.shape
    block = max(1, _BLOCK_ELEMENTS // min(n_outputs, n_inputs))
    per_row = []
    for start in range(0, len(inputs), block):
        a = inputs[start : start + block].to(dtype)
        d = output_grads[start : start + block].to(dtype)
        # The product is formed on the shorter side.
        products = (a @ c.T).mul_(d) if n_outputs <= n_inputs else (d @ c).mul_(a)
        per_row.append(products.sum(dim=1))
    return sum_by_unit(torch.cat(per_row), unit_index, n_units)


def ghost_sqnorm_torch(
    inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> Tensor:
    """Return ‖Σ over a unit's rows of δ aᵀ‖²; arguments as in the public operation."""
    dtype = compute_dtype(inputs, output_grads)
    n_inputs, n_outputs = inputs.shape[1], output_grads.shape[1]
    units = unit_index.cpu()
    sums = torch.zeros(n_units, dtype=torch.float64, device=inputs.device)
    for unit in torch.unique(units[units >= 0]).tolist():
        rows = (units == unit).nonzero().flatten().to(inputs.device)
        a, d = inputs[rows].to(dtype), output_grads[rows].to(dtype)
        if len(rows) * (n_inputs + n_outputs) <= n_inputs * n_outputs:
            products = (a @ a.T).mul_(d @ d.T)
        else:
            # So many rows that the unit's gradient itself is the smaller thing.
            products = (d.T @ a).square_()
        sums[unit] = products.sum(dtype=torch.float64)
    # A squared norm that rounding carried below zero is zero.
    return sums.clamp_(min=0)
