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
BLOCKS_PER_PROGRAM = 16
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
def _sketch_kernel(
    blocks_ptr,
    partials_ptr,
    n_blocks_given,
    shift_key,
    sign_key,
    DTYPE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS_PER_PROGRAM: tl.constexpr,
):
    """Add a run of blocks up in one tile of buckets.

    Reads every element once (4 bytes in fp32, one 32-bit load each, since the shift permutes a
    block) and writes 4 bytes per 16 elements.
    """
    tile = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1).to(tl.int64)
    buckets = tile * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], dtype=tl.float32)
    for i in range(BLOCKS_PER_PROGRAM):
        row = run * BLOCKS_PER_PROGRAM + i
        given = row < n_blocks_given
        # Columns of the table: address of the block, its elements, its number in the whole layout.
        address = tl.load(blocks_ptr + row * 3, mask=given, other=0)
        n_elements = tl.load(blocks_ptr + row * 3 + 1, mask=given, other=0)
        number = tl.load(blocks_ptr + row * 3 + 2, mask=given, other=0)
        shift = _mix(_mix(number.to(tl.uint32)) ^ shift_key.to(tl.uint32)) & (WIDTH - 1)
        places = buckets ^ shift.to(tl.int64)
        x = tl.load(
            address.to(tl.pointer_type(DTYPE), bitcast=True) + places,
            mask=places < n_elements,
            other=0.0,
        ).to(tl.float32)
        words = (number * (WIDTH // 32) + places // 32).to(tl.uint32)
        bits = _mix(_mix(words) ^ sign_key.to(tl.uint32)) >> (places % 32).to(tl.uint32)
        total += tl.where((bits & 1) == 1, -x, x)
    tl.store(partials_ptr + run * WIDTH + buckets, total)


def sketch_triton(
    tensors: Sequence[Tensor | None], numels: Sequence[int], width: int, seed: int
) -> Tensor:
    """Return the sketch (width,) in float64; arguments as in the public operation."""
    device = next(tensor.device for tensor in tensors if tensor is not None)
    groups: dict[torch.dtype, list[tuple[int, int, int]]] = {}
    kept_alive = []
    first_block = 0
    for tensor, numel in zip(tensors, numels, strict=True):
        count = n_blocks(numel, width)
        if tensor is not None:
            flat = tensor.reshape(-1)
            kept_alive.append(flat)
            size = width * flat.element_size()
            groups.setdefault(flat.dtype, []).extend(
                (flat.data_ptr() + i * size, min(width, numel - i * width), first_block + i)
                for i in range(count)
            )
        first_block += count
    total = torch.zeros(width, dtype=torch.float64, device=device)
    for dtype, blocks in groups.items():
        n_runs = triton.cdiv(len(blocks), BLOCKS_PER_PROGRAM)
        tile = min(TILE, width)
        partials = torch.empty((n_runs, width), dtype=torch.float32, device=device)
        with torch.cuda.device(device) if device.type == "cuda" else torch.device(device):
            _sketch_kernel[(width // tile, n_runs)](
                torch.from_numpy(np.array(blocks, dtype=np.int64)).to(device),
                partials,
                len(blocks),
                stream_key(seed, SHIFTS),
                stream_key(seed, SIGNS),
                DTYPE=_DTYPES[dtype],
                WIDTH=width,
                TILE=tile,
                BLOCKS_PER_PROGRAM=BLOCKS_PER_PROGRAM,
                num_warps=N_WARPS,
            )
        total += partials.sum(dim=0, dtype=torch.float64)
    return total
