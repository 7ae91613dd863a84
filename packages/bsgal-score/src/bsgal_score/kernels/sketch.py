"""Seeded count-sketches over all tensors in one launch, without atomics."""
# Just-in-time functions annotate compile-time constants only.
# mypy: disallow-incomplete-defs=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager.sketch import SHIFTS, SIGNS, n_blocks, stream_key

# A program owns a tile of buckets and walks through a run of blocks, so that no two programs add to
# the same number. Fixed sizes: they fix the order of summation, hence the bits.
TILE = 1024
BLOCKS_PER_PROGRAM = 64
N_WARPS = 4
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _pointers(address, places, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE), bitcast=True)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + places


@triton.jit
def _read(
    row_ptr,
    places,
    inside,
    decay,
    new_weight,
    DTYPE: tl.constexpr,
    REFERENCE_DTYPE: tl.constexpr,
    UPDATE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    pointers = _pointers(tl.load(row_ptr + 1), places, DTYPE, ALIGNED)
    x = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if UPDATE:
        # A missing gradient has address 0 and counts as zeros.
        address = tl.load(row_ptr + 3)
        g = tl.load(
            _pointers(address, places, REFERENCE_DTYPE, ALIGNED),
            mask=inside & (address != 0),
            other=0.0,
        ).to(tl.float32)
        stored = (decay * x + new_weight * g).to(DTYPE)
        tl.store(pointers, stored, mask=inside)
        x = stored.to(tl.float32)
    return x


@triton.jit
def _sketch_kernel(
    blocks_ptr,
    partials_ptr,
    n_blocks_given,
    shift_key,
    sign_key,
    decay,
    new_weight,
    DTYPE: tl.constexpr,
    REFERENCE_DTYPE: tl.constexpr,
    UPDATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS_PER_PROGRAM: tl.constexpr,
):
    """Add a run of blocks up in one tile of buckets, after updating them if `UPDATE`.

    The shift of a block permutes it. Its upper bits permute groups of four elements, which leaves
    loads of four in one piece; what it does within a group, by its two lowest bits, is left to
    whoever adds the four partial sums up, one for each value of these bits.

    Global traffic per element, fp32: 4 bytes to sketch (read x), 12 to update and sketch (read c
    and g, write c), which is the floor; and a quarter of a byte for the partial sums, 16 bytes of
    them per 64 elements.
    """
    tile = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, TILE)
    buckets = tile * TILE + lanes
    sum_0 = tl.zeros([TILE], dtype=tl.float32)
    sum_1 = tl.zeros([TILE], dtype=tl.float32)
    sum_2 = tl.zeros([TILE], dtype=tl.float32)
    sum_3 = tl.zeros([TILE], dtype=tl.float32)
    for i in range(BLOCKS_PER_PROGRAM):
        row = run * BLOCKS_PER_PROGRAM + i
        if row < n_blocks_given:
            row_ptr = blocks_ptr + row * 4
            n_elements = tl.load(row_ptr)
            number = tl.load(row_ptr + 2)
            shift = _mix(_mix(number.to(tl.uint32)) ^ shift_key.to(tl.uint32)) & (WIDTH - 1)
            within = shift & 3
            places = buckets ^ (shift - within).to(tl.int64)
            # No analysis sees that groups of four stay whole, so it is said.
            places = tl.max_contiguous(tl.multiple_of(places, 4), 4)
            if n_elements == WIDTH:
                x = _read(
                    row_ptr, places, lanes >= 0, decay, new_weight,
                    DTYPE, REFERENCE_DTYPE, UPDATE, ALIGNED,
                )  # fmt: skip
            else:
                x = _read(
                    row_ptr, places, places < n_elements, decay, new_weight,
                    DTYPE, REFERENCE_DTYPE, UPDATE, ALIGNED,
                )  # fmt: skip
            words = (number * (WIDTH // 32) + places // 32).to(tl.uint32)
            bits = _mix(_mix(words) ^ sign_key.to(tl.uint32)) >> (places % 32).to(tl.uint32)
            signed = tl.where((bits & 1) == 1, -x, x)
            sum_0 += tl.where(within == 0, signed, 0.0)
            sum_1 += tl.where(within == 1, signed, 0.0)
            sum_2 += tl.where(within == 2, signed, 0.0)
            sum_3 += tl.where(within == 3, signed, 0.0)
    partials_ptr += run * 4 * WIDTH + tile * TILE
    tl.store(partials_ptr + lanes, sum_0)
    tl.store(partials_ptr + WIDTH + lanes, sum_1)
    tl.store(partials_ptr + 2 * WIDTH + lanes, sum_2)
    tl.store(partials_ptr + 3 * WIDTH + lanes, sum_3)


def sketch_triton(
    tensors: Sequence[Tensor | None], numels: Sequence[int], width: int, seed: int
) -> Tensor:
    """Return the sketch (width,) in float64; arguments as in the public operation."""
    flat = [None if tensor is None else tensor.reshape(-1).contiguous() for tensor in tensors]
    return _launch(flat, None, numels, decay=0.0, width=width, seed=seed)


def cache_update_sketch_triton(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None],
    *,
    decay: float,
    width: int,
    seed: int,
) -> Tensor:
    """Update `cache` in place and return its sketch; arguments as in the public operation."""
    return _launch(
        [tensor.view(-1) for tensor in cache],
        [None if gradient is None else gradient.reshape(-1).contiguous() for gradient in reference],
        [tensor.numel() for tensor in cache],
        decay=decay,
        width=width,
        seed=seed,
    )


def _launch(
    tensors: Sequence[Tensor | None],
    reference: Sequence[Tensor | None] | None,
    numels: Sequence[int],
    *,
    decay: float,
    width: int,
    seed: int,
) -> Tensor:
    """Launch once per combination of dtypes; operands are flat."""
    device = next(tensor.device for tensor in tensors if tensor is not None)
    groups: dict[tuple[torch.dtype, torch.dtype], list[tuple[int, int, int, int]]] = {}
    first_block = 0
    for i, (tensor, numel) in enumerate(zip(tensors, numels, strict=True)):
        if tensor is not None and numel > 0:
            gradient = None if reference is None else reference[i]
            key = (tensor.dtype, tensor.dtype if gradient is None else gradient.dtype)
            groups.setdefault(key, []).extend(_block_rows(tensor, gradient, width, first_block))
        first_block += n_blocks(numel, width)
    total = torch.zeros(width, dtype=torch.float64, device=device)
    tile = min(TILE, width)
    places = torch.arange(width, device=device)
    for (dtype, reference_dtype), blocks in groups.items():
        table = np.array(blocks, dtype=np.int64)
        n_runs = triton.cdiv(len(blocks), BLOCKS_PER_PROGRAM)
        partials = torch.empty((n_runs, 4, width), dtype=torch.float32, device=device)
        with torch.cuda.device(device) if device.type == "cuda" else torch.device(device):
            _sketch_kernel[(width // tile, n_runs)](
                torch.from_numpy(table).to(device),
                partials,
                len(blocks),
                stream_key(seed, SHIFTS),
                stream_key(seed, SIGNS),
                float(decay),
                float(1 - decay),
                DTYPE=_DTYPES[dtype],
                REFERENCE_DTYPE=_DTYPES[reference_dtype],
                UPDATE=reference is not None,
                ALIGNED=bool((table[:, 1::2] % 16 == 0).all()),
                WIDTH=width,
                TILE=tile,
                BLOCKS_PER_PROGRAM=BLOCKS_PER_PROGRAM,
                num_warps=N_WARPS,
            )
        by_low_bits = partials.sum(dim=0, dtype=torch.float64)
        for low_bits in range(4):
            total += by_low_bits[low_bits][places ^ low_bits]
    return total


def _block_rows(
    tensor: Tensor, gradient: Tensor | None, width: int, first_block: int
) -> list[tuple[int, int, int, int]]:
    """List a tensor's blocks: elements, address, number in the whole layout, gradient's address.

    The two addresses are kept apart, or a compiler may read them at once, as it reads elements.
    """
    size = width * tensor.element_size()
    start, step = (0, 0) if gradient is None else (gradient.data_ptr(), gradient.element_size())
    return [
        (
            min(width, tensor.numel() - i * width),
            tensor.data_ptr() + i * size,
            first_block + i,
            start + i * width * step,
        )
        for i in range(n_blocks(tensor.numel(), width))
    ]
