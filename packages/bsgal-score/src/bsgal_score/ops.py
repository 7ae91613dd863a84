"""The operations behind the scores, each with `impl="auto" | "triton" | "torch"`.

`"auto"` takes Triton for CUDA and ROCm tensors where it is installed, else torch. An explicit
choice is obeyed or raises `ImplementationUnavailableError`. `bsgal_score.reference` defines what
each operation computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._dispatch import choose_implementation
from ._layout import is_dense
from ._types import CacheSums, Implementation, TensorMetric
from .eager.cache_update_dot import cache_update_dot_torch

__all__ = ["CacheSums", "TensorMetric", "cache_update_dot"]


def cache_update_dot(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None] | None,
    candidate: Sequence[Tensor | None] | None,
    *,
    decay: float = 0.0,
    row_decay: Sequence[Tensor | None] | None = None,
    metric: Sequence[TensorMetric | None] | None = None,
    impl: Implementation = "auto",
) -> CacheSums:
    """Update the cache in place, c ← decay·c + (1 - decay)·g, and return ⟨c, k⟩, ⟨c, c⟩, ⟨k, k⟩.

    All tensors are taken in one pass over memory; the sums are those of the new cache. Equal inputs
    give equal bits. Extra memory: one block (torch), or 12 bytes per 8192 elements (Triton), plus a
    copy of any gradient whose strides differ from those of its cache tensor.

    Args:
        cache: The tensors c, updated in place; dense, float32, bfloat16 or (torch only) float64.
        reference: The gradients g, one per cache tensor and in its shape; None for one of them
            counts as zeros, None for all means no update.
        candidate: The gradients k, likewise; None for all leaves ⟨c, k⟩ and ⟨k, k⟩ zero.
        decay: Weight of the old cache, in [0, 1].
        row_decay: Per cache tensor None or a float tensor (n_rows,) that replaces `decay` row by
            row along the first axis; such a cache tensor must be contiguous.
        metric: Per cache tensor the diagonal s of the inner product Σ x·s·y that all three sums
            use; None is s = 1.
        impl: Which implementation to run.

    Returns:
        Three 0-d float64 tensors on the device of the first cache tensor.

    Raises:
        ValueError: If lengths, shapes, devices, layouts or `decay` do not fit.
        ImplementationUnavailableError: If `impl` cannot run here.
    """
    _check_operands(cache, reference, candidate, decay, row_decay, metric)
    chosen = choose_implementation("cache_update_dot", impl, cache[0].device)
    if chosen == "triton":
        from .kernels.cache_update_dot import cache_update_dot_triton

        run = cache_update_dot_triton
    else:
        run = cache_update_dot_torch
    with torch.no_grad():
        return run(cache, reference, candidate, decay=decay, row_decay=row_decay, metric=metric)


def _check_operands(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None] | None,
    candidate: Sequence[Tensor | None] | None,
    decay: float,
    row_decay: Sequence[Tensor | None] | None,
    metric: Sequence[TensorMetric | None] | None,
) -> None:
    if not cache:
        raise ValueError("`cache` must hold at least one tensor, got none")
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"`decay` must lie in [0, 1], got {decay}")
    for index, tensor in enumerate(cache):
        if tensor.numel() == 0:
            raise ValueError(
                f"`cache[{index}]` is empty, shape {tuple(tensor.shape)}; leave it out"
            )
        if not is_dense(tensor):
            raise ValueError(f"`cache[{index}]` must be dense, got strides {tensor.stride()}")
    second_moments = None
    if metric is not None:
        second_moments = [None if entry is None else entry.second_moment for entry in metric]
    for name, operands in (
        ("reference", reference), ("candidate", candidate), ("metric", second_moments),
    ):  # fmt: skip
        if operands is not None:
            _check_like_cache(name, operands, cache)
    if row_decay is not None:
        _check_row_decay(row_decay, cache)


def _check_like_cache(
    name: str, operands: Sequence[Tensor | None], cache: Sequence[Tensor]
) -> None:
    if len(operands) != len(cache):
        raise ValueError(
            f"`{name}` must hold one entry per cache tensor ({len(cache)}), got {len(operands)}"
        )
    for index, (operand, tensor) in enumerate(zip(operands, cache, strict=True)):
        if operand is None:
            continue
        if operand.layout != torch.strided:
            raise ValueError(f"`{name}[{index}]` must be a dense tensor, got {operand.layout}")
        if operand.shape != tensor.shape or operand.device != tensor.device:
            raise ValueError(
                f"`{name}[{index}]` must have shape {tuple(tensor.shape)} on {tensor.device}, "
                f"got {tuple(operand.shape)} on {operand.device}"
            )


def _check_row_decay(row_decay: Sequence[Tensor | None], cache: Sequence[Tensor]) -> None:
    if len(row_decay) != len(cache):
        raise ValueError(
            f"`row_decay` must hold one entry per cache tensor ({len(cache)}), got {len(row_decay)}"
        )
    for index, (rows, tensor) in enumerate(zip(row_decay, cache, strict=True)):
        if rows is None:
            continue
        if tensor.dim() == 0 or rows.shape != tensor.shape[:1]:
            raise ValueError(
                f"`row_decay[{index}]` must have one entry per row of a cache tensor of shape "
                f"{tuple(tensor.shape)}, got shape {tuple(rows.shape)}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"`cache[{index}]` must be contiguous to decay by row")
