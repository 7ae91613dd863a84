"""Cache update, dot product and both norms over all tensors in one launch."""
# Just-in-time functions annotate compile-time constants only.
# mypy: disallow-incomplete-defs=false

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import flat, flat_like
from .._types import CacheSums, TensorMetric

# One program takes a chunk of one tensor, block by block. 1024 elements in 4 warps are two 128-bit
# fp32 loads per thread and operand; eight blocks a chunk keep the table small (8 bytes a KiB of
# cache) and still give 120 programs a million parameters. Not autotuned: the sizes fix the order of
# summation, hence the bits.
BLOCK = 1024
CHUNK = 8 * BLOCK
N_WARPS = 4

_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
# Columns of the table of tensors, all int64.
_N_COLUMNS = 7


@triton.jit
def _element_pointers(address, start, offsets, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE), bitcast=True)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start + offsets


@triton.jit
def _chunk_sums(
    tensor_ptr,
    scalars_ptr,
    chunk_start,
    decay,
    new_weight,
    CACHE_DTYPE: tl.constexpr,
    REFERENCE_DTYPE: tl.constexpr,
    CANDIDATE_DTYPE: tl.constexpr,
    UPDATE: tl.constexpr,
    SCORE: tl.constexpr,
    ROW_DECAY: tl.constexpr,
    METRIC: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cache_address = tl.load(tensor_ptr)
    reference_address = tl.load(tensor_ptr + 1)
    candidate_address = tl.load(tensor_ptr + 2)
    row_decay_address = tl.load(tensor_ptr + 3)
    second_moment_address = tl.load(tensor_ptr + 4)
    n_elements = tl.load(tensor_ptr + 5)
    row_length = tl.load(tensor_ptr + 6)
    if METRIC:
        scale = tl.load(scalars_ptr)
        inverse_bias_correction = tl.load(scalars_ptr + 1)
        eps = tl.load(scalars_ptr + 2)

    dot = tl.zeros([BLOCK], dtype=tl.float32)
    cache_sqnorm = tl.zeros([BLOCK], dtype=tl.float32)
    candidate_sqnorm = tl.zeros([BLOCK], dtype=tl.float32)
    lanes = tl.arange(0, BLOCK)
    for block_start in range(0, CHUNK, BLOCK):
        start = chunk_start + block_start
        # In a whole chunk the mask is true for all lanes, so that loads stay 128 bits wide; a bound
        # that no compiler can know to be a multiple of four would break them up.
        inside = lanes >= 0 if WHOLE else start + lanes < n_elements
        cache_pointers = _element_pointers(cache_address, start, lanes, CACHE_DTYPE, ALIGNED)
        c = tl.load(cache_pointers, mask=inside, other=0.0).to(tl.float32)
        if UPDATE:
            # A missing gradient has address 0 and counts as zeros.
            g = tl.load(
                _element_pointers(reference_address, start, lanes, REFERENCE_DTYPE, ALIGNED),
                mask=inside & (reference_address != 0),
                other=0.0,
            ).to(tl.float32)
            keep = tl.full([BLOCK], 1.0, tl.float32) * decay
            take = tl.full([BLOCK], 1.0, tl.float32) * new_weight
            if ROW_DECAY:  # noqa: SIM102 - the switch outside is one of compile time
                if row_decay_address != 0:
                    rows = (start + lanes) // row_length
                    row_pointers = row_decay_address.to(tl.pointer_type(tl.float32), bitcast=True)
                    keep = tl.load(row_pointers + rows, mask=inside, other=1.0)
                    take = 1.0 - keep
            stored = (keep * c + take * g).to(CACHE_DTYPE)
            tl.store(cache_pointers, stored, mask=inside)
            c = stored.to(tl.float32)
        weighted = c
        if METRIC:
            v = tl.load(
                _element_pointers(second_moment_address, start, lanes, tl.float32, ALIGNED),
                mask=inside & (second_moment_address != 0),
                other=1.0,
            )
            root = tl.sqrt_rn(v * inverse_bias_correction) + eps
            # Without second moments the scalars are 1 and 0, so that the root is 1.
            s = tl.div_rn(tl.full([BLOCK], 1.0, tl.float32) * scale, root)
            weighted = c * s
        cache_sqnorm += weighted * c
        if SCORE:
            k = tl.load(
                _element_pointers(candidate_address, start, lanes, CANDIDATE_DTYPE, ALIGNED),
                mask=inside & (candidate_address != 0),
                other=0.0,
            ).to(tl.float32)
            dot += weighted * k
            if METRIC:
                candidate_sqnorm += k * s * k
            else:
                candidate_sqnorm += k * k
    return tl.sum(dot, axis=0), tl.sum(cache_sqnorm, axis=0), tl.sum(candidate_sqnorm, axis=0)


@triton.jit
def _cache_update_dot_kernel(
    tensors_ptr,
    scalars_ptr,
    chunks_ptr,
    partials_ptr,
    decay,
    new_weight,
    CACHE_DTYPE: tl.constexpr,
    REFERENCE_DTYPE: tl.constexpr,
    CANDIDATE_DTYPE: tl.constexpr,
    UPDATE: tl.constexpr,
    SCORE: tl.constexpr,
    ROW_DECAY: tl.constexpr,
    METRIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum up one chunk of one tensor.

    Global traffic per element, fp32, the floor for what is computed: 16 bytes for update and score
    (read c, g, k, write c), 12 for the update alone, 8 for the score alone; 4 more with a metric,
    and 4 more with row decay, which come from the L1 cache: every element reads its row's weight.
    """
    chunk = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks_ptr + chunk * 2)
    # Chunks start at multiples of their size; said here because the loads below depend on it.
    chunk_start = tl.multiple_of(tl.load(chunks_ptr + chunk * 2 + 1), BLOCK)
    tensor_ptr = tensors_ptr + tensor * 7
    scalar_ptr = scalars_ptr + tensor * 3
    if chunk_start + CHUNK <= tl.load(tensor_ptr + 5):
        dot, cache_sqnorm, candidate_sqnorm = _chunk_sums(
            tensor_ptr, scalar_ptr, chunk_start, decay, new_weight,
            CACHE_DTYPE, REFERENCE_DTYPE, CANDIDATE_DTYPE,
            UPDATE, SCORE, ROW_DECAY, METRIC, True, ALIGNED, CHUNK, BLOCK,
        )  # fmt: skip
    else:
        dot, cache_sqnorm, candidate_sqnorm = _chunk_sums(
            tensor_ptr, scalar_ptr, chunk_start, decay, new_weight,
            CACHE_DTYPE, REFERENCE_DTYPE, CANDIDATE_DTYPE,
            UPDATE, SCORE, ROW_DECAY, METRIC, False, ALIGNED, CHUNK, BLOCK,
        )  # fmt: skip
    tl.store(partials_ptr + chunk * 3, dot)
    tl.store(partials_ptr + chunk * 3 + 1, cache_sqnorm)
    tl.store(partials_ptr + chunk * 3 + 2, candidate_sqnorm)


def cache_update_dot_triton(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None] | None,
    candidate: Sequence[Tensor | None] | None,
    *,
    decay: float,
    row_decay: Sequence[Tensor | None] | None,
    metric: Sequence[TensorMetric | None] | None,
) -> CacheSums:
    """Update `cache` in place and return the three sums; arguments as in the public operation.

    One launch per device and combination of dtypes, which for a usual model is one launch.
    """
    device = cache[0].device
    reference_dtypes = _dtypes(reference, cache)
    candidate_dtypes = _dtypes(candidate, cache)
    groups: dict[tuple[torch.device, torch.dtype, torch.dtype, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(cache):
        key = (tensor.device, tensor.dtype, reference_dtypes[i], candidate_dtypes[i])
        groups.setdefault(key, []).append(i)
    partials = [
        _launch(
            [cache[i] for i in indices],
            None if reference is None else [reference[i] for i in indices],
            None if candidate is None else [candidate[i] for i in indices],
            (cache_dtype, reference_dtype, candidate_dtype),
            decay=decay,
            row_decay=None if row_decay is None else [row_decay[i] for i in indices],
            metric=None if metric is None else [metric[i] for i in indices],
        ).to(device)
        for (_, cache_dtype, reference_dtype, candidate_dtype), indices in groups.items()
    ]
    sums = torch.cat(partials).sum(dim=0, dtype=torch.float64)
    return CacheSums(*sums.unbind())


def _dtypes(operands: Sequence[Tensor | None] | None, cache: Sequence[Tensor]) -> list[torch.dtype]:
    """List the operands' dtypes; a missing one takes the first there is, to share its launch."""
    present = [operand.dtype for operand in operands or () if operand is not None]
    default = present[0] if present else cache[0].dtype
    return [
        default if operand is None else operand.dtype for operand in operands or [None] * len(cache)
    ]


def _launch(
    cache: list[Tensor],
    reference: list[Tensor | None] | None,
    candidate: list[Tensor | None] | None,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    *,
    decay: float,
    row_decay: list[Tensor | None] | None,
    metric: list[TensorMetric | None] | None,
) -> Tensor:
    """Launch over tensors that share a device and dtypes; return the partial sums (n_chunks, 3)."""
    device = cache[0].device
    operands: list[Tensor] = []  # keeps copies alive until the launch is in the queue

    def address(tensor: Tensor | None, like: Tensor) -> int:
        if tensor is None:
            return 0
        operands.append(flat_like(tensor, like))
        return operands[-1].data_ptr()

    table = np.zeros((len(cache), _N_COLUMNS), dtype=np.int64)
    scalars = np.ones((len(cache), 3), dtype=np.float32)
    for i, tensor in enumerate(cache):
        table[i, 0] = flat(tensor).data_ptr()
        table[i, 1] = 0 if reference is None else address(reference[i], tensor)
        table[i, 2] = 0 if candidate is None else address(candidate[i], tensor)
        rows = None if row_decay is None else row_decay[i]
        if rows is not None:
            operands.append(rows.to(device, torch.float32).contiguous())
            table[i, 3] = operands[-1].data_ptr()
        entry = None if metric is None else metric[i]
        scalars[i] = (1.0, 1.0, 0.0)
        if entry is not None:
            scalars[i, 0] = entry.scale
            if entry.second_moment is not None:
                table[i, 4] = address(entry.second_moment.float(), tensor)
                scalars[i, 1:] = (1 / entry.bias_correction, entry.eps)
        table[i, 5] = tensor.numel()
        table[i, 6] = tensor[0].numel() if rows is not None else 1
    chunks = _chunk_table(tuple(tensor.numel() for tensor in cache), device)
    partials = torch.empty((len(chunks), 3), dtype=torch.float32, device=device)
    cache_dtype, reference_dtype, candidate_dtype = (_TRITON_DTYPES[dtype] for dtype in dtypes)
    with torch.cuda.device(device) if device.type == "cuda" else torch.device(device):
        _cache_update_dot_kernel[(len(chunks),)](
            torch.from_numpy(table).to(device),
            torch.from_numpy(scalars).to(device),
            chunks,
            partials,
            float(decay),
            float(1 - decay),
            CACHE_DTYPE=cache_dtype,
            REFERENCE_DTYPE=reference_dtype,
            CANDIDATE_DTYPE=candidate_dtype,
            UPDATE=reference is not None,
            SCORE=candidate is not None,
            ROW_DECAY=row_decay is not None,
            METRIC=metric is not None,
            ALIGNED=bool((table[:, [0, 1, 2, 4]] % 16 == 0).all()),
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            num_warps=N_WARPS,
        )
    return partials


@lru_cache(maxsize=8)
def _chunk_table(numels: tuple[int, ...], device: torch.device) -> Tensor:
    """List (tensor, first element) of every chunk; depends on the sizes alone, so it is kept."""
    rows = [
        np.stack([np.full(-(-numel // CHUNK), tensor), np.arange(0, numel, CHUNK)], axis=1)
        for tensor, numel in enumerate(numels)
    ]
    return torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(device)
