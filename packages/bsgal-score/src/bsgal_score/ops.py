"""The operations behind the scores, each with `impl="auto" | "triton" | "torch"`.

`"auto"` takes Triton for CUDA and ROCm tensors where one that is new enough is installed, else
torch. An explicit choice is obeyed or raises `ImplementationUnavailableError`.
`bsgal_score.reference` defines what each operation computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._dispatch import choose_implementation
from ._layout import is_dense
from ._types import CacheSums, Implementation, TensorMetric
from .eager.cache_update_dot import cache_update_dot_torch
from .eager.ghost import ghost_dot_torch, ghost_sqnorm_torch, mend_cancelled
from .eager.sketch import cache_update_sketch_torch, sketch_torch

__all__ = [
    "CacheSums",
    "Implementation",
    "TensorMetric",
    "cache_update_dot",
    "cache_update_sketch",
    "ghost_dot",
    "ghost_sqnorm",
    "sketch",
]


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
    give equal bits, as long as torch's number of threads stays the same.

    Extra memory on a CPU: next to none for float32 operands; at most two blocks of 2¹⁷ elements a
    thread to convert narrower ones, and two for `metric`. Triton: 12 bytes per 8192 elements. A
    gradient whose strides differ from those of its cache tensor is copied.

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
        operands = (*cache, *(reference or ()), *(candidate or ()))
        _check_triton_dtypes(*(tensor for tensor in operands if tensor is not None))
        from .kernels.cache_update_dot import cache_update_dot_triton

        run = cache_update_dot_triton
    else:
        run = cache_update_dot_torch
    with torch.no_grad():
        return run(cache, reference, candidate, decay=decay, row_decay=row_decay, metric=metric)


def ghost_dot(
    weights: Tensor,
    inputs: Tensor,
    output_grads: Tensor,
    unit_index: Tensor,
    n_units: int,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    """Return ⟨C, G_i⟩ for every unit i, where G_i = Σ δ_r a_rᵀ over its rows is never formed.

    A linear map z = W a gives a unit the gradient G_i, so the dot product is Σ δ_rᵀ C a_r. Products
    are IEEE fp32; in torch they follow `torch.set_float32_matmul_precision`, whose default is that.

    Args:
        weights: C, (n_outputs, n_inputs); float32, bfloat16, float16 or (torch only) float64.
        inputs: Rows a_r, (N, n_inputs), N >= 1.
        output_grads: Rows δ_r, (N, n_outputs): gradients of the loss in the outputs.
        unit_index: Unit of each row, int64 (N,), less than `n_units`; negative rows do not count.
        n_units: Number of units, at least 1.
        impl: Which implementation to run.

    Returns:
        (n_units,) float64 on the device of `inputs`; zero for a unit without rows.

    Raises:
        ValueError: If shapes, devices or indices do not fit.
        ImplementationUnavailableError: If `impl` cannot run here.
    """
    _check_rows(inputs, output_grads, unit_index, n_units)
    expected = (output_grads.shape[1], inputs.shape[1])
    if weights.shape != expected or weights.device != inputs.device:
        raise ValueError(
            f"`weights` must have shape {expected} on {inputs.device}, "
            f"got {tuple(weights.shape)} on {weights.device}"
        )
    run = ghost_dot_torch
    if choose_implementation("ghost_dot", impl, inputs.device) == "triton":
        _check_triton_dtypes(weights, inputs, output_grads)
        from .kernels.ghost_dot import ghost_dot_triton

        run = ghost_dot_triton
    with torch.no_grad():
        return run(weights, inputs, output_grads, unit_index, n_units)


def ghost_sqnorm(
    inputs: Tensor,
    output_grads: Tensor,
    unit_index: Tensor,
    n_units: int,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    """Return ‖G_i‖² for every unit i, where G_i = Σ δ_r a_rᵀ over its rows.

    Computed as Σ over pairs of rows of (a_r·a_s)(δ_r·δ_s), which needs no memory of the size of the
    weights; but the gradient of a unit whose rows nearly cancel is formed, in float64, and is zero
    if it is less than the rounding of the rows. Arguments, result and errors as in `ghost_dot`.
    """
    _check_rows(inputs, output_grads, unit_index, n_units)
    run = ghost_sqnorm_torch
    if choose_implementation("ghost_sqnorm", impl, inputs.device) == "triton":
        _check_triton_dtypes(inputs, output_grads)
        from .kernels.ghost_sqnorm import ghost_sqnorm_triton

        run = ghost_sqnorm_triton
    with torch.no_grad():
        sqnorms = run(inputs, output_grads, unit_index, n_units)
        return mend_cancelled(sqnorms, inputs, output_grads, unit_index)


def sketch(
    tensors: Sequence[Tensor | None],
    numels: Sequence[int],
    *,
    width: int,
    seed: int,
    impl: Implementation = "auto",
) -> Tensor:
    """Return the seeded count-sketch of tensors laid end to end: signed sums in `width` buckets.

    Each tensor is cut into blocks of `width` elements. Within a block every element has a bucket of
    its own: its place, XOR a hash of the block. Signs are hashed per element. So two elements share
    a bucket with probability 1 / width if their blocks differ, and never otherwise.

    Args:
        tensors: The tensors, in row-major order of elements; None counts as zeros.
        numels: Number of elements of every tensor, also of the missing ones.
        width: Number of buckets, a power of two of at least 32.
        seed: Non-negative; chooses hashes.
        impl: Which implementation to run.

    Returns:
        (width,) float64 on the device of the tensors.

    Raises:
        ValueError: If an argument does not fit.
        ImplementationUnavailableError: If `impl` cannot run here.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if not given or len(tensors) != len(numels):
        raise ValueError("`tensors` must hold a tensor, and one entry per entry of `numels`")
    _check_sketch_options(width, seed)
    for tensor, numel in zip(tensors, numels, strict=True):
        if tensor is not None and tensor.numel() != numel:
            raise ValueError(f"`numels` says {numel}, the tensor has {tensor.numel()} elements")
    run = sketch_torch
    if choose_implementation("sketch", impl, given[0].device) == "triton":
        _check_triton_dtypes(*given)
        from .kernels.sketch import sketch_triton

        run = sketch_triton
    with torch.no_grad():
        return run(tensors, numels, width, seed)


def cache_update_sketch(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None],
    *,
    decay: float,
    width: int,
    seed: int,
    impl: Implementation = "auto",
) -> Tensor:
    """Update the cache in place, c ← decay·c + (1 - decay)·g, and return the sketch of the new c.

    One pass over memory: the sketch costs no further reading of the cache. The result is that of
    `sketch` on the updated tensors.

    Args:
        cache: The tensors c, updated in place; contiguous, float32, bfloat16 or (torch only)
            float64.
        reference: The gradients g, one per cache tensor and in its shape; None counts as zeros.
        decay: Weight of the old cache, in [0, 1].
        width: Number of buckets, a power of two of at least 32.
        seed: Non-negative; chooses hashes.
        impl: Which implementation to run.

    Returns:
        (width,) float64 on the device of the first cache tensor.

    Raises:
        ValueError: If an argument does not fit.
        ImplementationUnavailableError: If `impl` cannot run here.
    """
    _check_operands(cache, reference, None, decay, None, None)
    _check_sketch_options(width, seed)
    for index, tensor in enumerate(cache):
        if not tensor.is_contiguous() or tensor.device != cache[0].device:
            raise ValueError(
                f"`cache[{index}]` must be contiguous and on {cache[0].device}, since a sketch "
                "counts elements row by row; use `cache_update_dot`, then `sketch`"
            )
    run = cache_update_sketch_torch
    if choose_implementation("cache_update_sketch", impl, cache[0].device) == "triton":
        _check_triton_dtypes(*cache, *(tensor for tensor in reference if tensor is not None))
        from .kernels.sketch import cache_update_sketch_triton

        run = cache_update_sketch_triton
    with torch.no_grad():
        return run(cache, reference, decay=decay, width=width, seed=seed)


def _check_sketch_options(width: int, seed: int) -> None:
    if width < 32 or width & (width - 1) or seed < 0:
        raise ValueError(
            "`width` must be a power of two of at least 32 and `seed` must not be negative, got "
            f"{width} and {seed}"
        )


def _check_rows(inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int) -> None:
    if inputs.dim() != 2 or output_grads.dim() != 2 or 0 in (*inputs.shape, *output_grads.shape):
        raise ValueError(
            "`inputs` and `output_grads` must be non-empty and of shape (N, columns), got "
            f"{tuple(inputs.shape)} and {tuple(output_grads.shape)}"
        )
    n_rows = len(inputs)
    if len(output_grads) != n_rows or output_grads.device != inputs.device:
        raise ValueError(
            f"`output_grads` must have {n_rows} rows on {inputs.device}, got {len(output_grads)} "
            f"on {output_grads.device}"
        )
    if unit_index.dtype != torch.int64 or unit_index.shape != (n_rows,):
        raise ValueError(
            f"`unit_index` must be int64 of shape ({n_rows},), one unit per row, got "
            f"{unit_index.dtype} of shape {tuple(unit_index.shape)}"
        )
    if n_units < 1 or int(unit_index.max()) >= n_units:
        raise ValueError(
            f"`n_units` must be at least 1 and above every index, got {n_units} and a largest "
            f"index of {int(unit_index.max())}"
        )


def _check_triton_dtypes(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                "impl='triton' takes float32, bfloat16 and float16, got "
                f"{tensor.dtype}; use impl='torch'"
            )


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
