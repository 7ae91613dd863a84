"""Ghost dot products and norms in torch: sums over a unit's rows, without its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows are taken in blocks, so that what a block needs beside the operands stays in a core's cache:
# 2 MB in fp32.
_BLOCK_ELEMENTS = 1 << 19
# But a product of fewer rows would read the weights too often.
_LEAST_ROWS = 128


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if one of the tensors is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sum_by_unit(per_row: Tensor, unit_index: Tensor, n_units: int) -> Tensor:
    """Sum values (N, ...) by unit in float64; rows with a negative unit are left out.

    The sum runs on the CPU, in the order of the rows: `index_add_` on GPUs is not reproducible.
    """
    units = unit_index.cpu()
    counted = (units >= 0).nonzero().flatten()
    sums = torch.zeros(n_units, *per_row.shape[1:], dtype=torch.float64)
    sums.index_add_(0, units[counted], take(per_row.cpu(), counted).double())
    return sums.to(per_row.device)


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of a tensor; a view where they follow one another."""
    first, n_rows = int(rows[0]) if len(rows) else 0, len(rows)
    if n_rows and int(rows[-1]) - first == n_rows - 1:
        consecutive = torch.arange(first, first + n_rows, device=rows.device)
        if torch.equal(rows, consecutive):
            return tensor[first : first + n_rows]
    return tensor.index_select(0, rows.to(tensor.device))


def ghost_dot_torch(
    weights: Tensor, inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> Tensor:
    """Return Σ over a unit's rows of δᵀ C a; arguments as in the public operation."""
    dtype = compute_dtype(weights, inputs, output_grads)
    c = weights.to(dtype)
    n_outputs, n_inputs = c.shape
    units = unit_index.cpu()
    counted = (units >= 0).nonzero().flatten()
    block = max(_LEAST_ROWS, _BLOCK_ELEMENTS // min(n_outputs, n_inputs))
    sums = torch.zeros(n_units, dtype=torch.float64)
    for start in range(0, len(counted), block):
        rows = counted[start : start + block]
        a, d = take(inputs, rows).to(dtype), take(output_grads, rows).to(dtype)
        # The product is formed on the shorter side.
        products = (a @ c.T).mul_(d) if n_outputs <= n_inputs else (d @ c).mul_(a)
        sums.index_add_(0, units[rows], products.sum(dim=1).double().cpu())
    return sums.to(inputs.device)


def ghost_sqnorm_torch(
    inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> Tensor:
    """Return ‖Σ over a unit's rows of δ aᵀ‖²; arguments as in the public operation.

    Units with equally many rows are taken together.
    """
    dtype = compute_dtype(inputs, output_grads)
    n_inputs, n_outputs = inputs.shape[1], output_grads.shape[1]
    sums = torch.zeros(n_units, dtype=torch.float64)
    for units, rows in _by_count(unit_index.cpu()):
        n_rows = rows.shape[1]
        by_pairs = n_rows * (n_inputs + n_outputs) <= n_inputs * n_outputs
        largest = max(
            n_rows * max(n_inputs, n_outputs), n_rows**2 if by_pairs else n_inputs * n_outputs
        )
        block = max(1, _BLOCK_ELEMENTS // largest)
        for start in range(0, len(units), block):
            own = rows[start : start + block]
            a, d = (
                take(tensor, own.flatten()).to(dtype).view(len(own), n_rows, -1)
                for tensor in (inputs, output_grads)
            )
            if n_rows == 1:
                # Not a batched product of vectors, which adds up without regard to rounding.
                norms = [torch.linalg.vector_norm(x[:, 0], dim=1).double() for x in (a, d)]
                found = (norms[0] * norms[1]).square_()
            elif by_pairs:
                found = (a @ a.mT).mul_(d @ d.mT).sum(dim=(1, 2), dtype=torch.float64)
            else:
                # So many rows that the unit's gradient itself is the smaller thing.
                found = (d.mT @ a).square_().sum(dim=(1, 2), dtype=torch.float64)
            sums[units[start : start + block]] = found.cpu()
    # A squared norm that rounding carried below zero is zero.
    return sums.clamp_(min=0).to(inputs.device)


def mend_cancelled(
    sqnorms: Tensor, inputs: Tensor, output_grads: Tensor, unit_index: Tensor
) -> Tensor:
    """Return ‖Σ δ aᵀ‖² of units, mended where the rows nearly cancel.

    Summed over pairs of rows, it has a rounding error of u·(Σ ‖δ‖‖a‖)², which is all there is of a
    sum that is much smaller. Such a unit's gradient is formed in float64. If it is less than the
    rounding of its own rows, eps·Σ ‖δ‖‖a‖, it is zero.

    Args:
        sqnorms: As summed over pairs, float64 (n_units,).
        inputs: As in the public operation, like the others.
        output_grads: δ.
        unit_index: Unit of each row.
    """
    units = unit_index.cpu()
    n_units = len(sqnorms)
    if int(torch.bincount(units[units >= 0], minlength=n_units).max()) < 2:
        return sqnorms
    dtype = compute_dtype(inputs, output_grads)
    eps = torch.finfo(dtype).eps
    norms = [torch.linalg.vector_norm(x, dim=1, dtype=dtype) for x in (inputs, output_grads)]
    bounds = sum_by_unit(norms[0].double() * norms[1].double(), units, n_units).square().cpu()
    found = sqnorms.cpu()
    # From here on the error of the norm is less than 1 in 128.
    cancelled = (found < 64 * eps * bounds) & bounds.isfinite()
    for unit in cancelled.nonzero().flatten().tolist():
        rows = (units == unit).nonzero().flatten()
        gradient = take(output_grads, rows).double().T @ take(inputs, rows).double()
        sqnorm = gradient.square().sum().cpu()
        found[unit] = 0.0 if sqnorm < eps**2 * bounds[unit] else sqnorm
    return found.to(sqnorms.device)


def _by_count(units: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Group units by their number of rows: pairs of units (u,) and their rows (u, count)."""
    order = torch.argsort(units, stable=True)
    order = order[units[order] >= 0]
    present, counts = torch.unique_consecutive(units[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    groups = []
    for count in torch.unique(counts).tolist():
        chosen = counts == count
        places = starts[chosen, None] + torch.arange(count)
        groups.append((present[chosen], order[places]))
    return groups
