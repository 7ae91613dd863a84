"""Count-sketches in torch, block by block; and the hashes that every implementation shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements taken at a time: their integer hashes are eight times as large as themselves in fp32.
_CHUNK = 1 << 17
_MASK = 0xFFFFFFFF

SHIFTS, SIGNS = 0, 1
"""The two streams of hashes: one number per block, and one bit per element."""


def mix(x: Tensor) -> Tensor:
    """Scramble 32-bit integers held in int64: two rounds of multiply and shift, one to one.

    The constants are those of the "lowbias32" search, https://nullprogram.com/blog/2018/07/31/.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def stream_key(seed: int, stream: int) -> int:
    """Return the 32-bit key of one stream of hashes of a seed."""
    low = mix(torch.tensor((2 * seed + stream) & _MASK))
    return int(mix(low ^ ((seed >> 31) & _MASK)))


def hashes(index: Tensor, key: int) -> Tensor:
    """Hash numbers below 2**32 under a key; int64 values below 2**32."""
    return mix(mix(index) ^ key)


def n_blocks(numel: int, width: int) -> int:
    """Return the number of blocks of `width` elements that a tensor takes."""
    return -(-numel // width)


def sketch_torch(
    tensors: Sequence[Tensor | None], numels: Sequence[int], width: int, seed: int
) -> Tensor:
    """Return the sketch (width,) in float64; arguments as in the public operation."""
    device = next(t.device for t in tensors if t is not None)
    total = torch.zeros(width, dtype=torch.float64, device=device)
    keys = stream_key(seed, SHIFTS), stream_key(seed, SIGNS)
    first_block = 0
    for tensor, numel in zip(tensors, numels, strict=True):
        if tensor is not None:
            values = tensor.reshape(-1)
            for start, stop in _chunks(numel, width):
                _add(total, values[start:stop], first_block + start // width, keys)
        first_block += n_blocks(numel, width)
    return total


def cache_update_sketch_torch(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None],
    *,
    decay: float,
    width: int,
    seed: int,
) -> Tensor:
    """Update `cache` in place and return its sketch; arguments as in the public operation."""
    total = torch.zeros(width, dtype=torch.float64, device=cache[0].device)
    keys = stream_key(seed, SHIFTS), stream_key(seed, SIGNS)
    first_block = 0
    for tensor, gradient in zip(cache, reference, strict=True):
        values = tensor.view(-1)
        compute_dtype = torch.promote_types(tensor.dtype, torch.float32)
        zero = torch.zeros((), dtype=compute_dtype, device=tensor.device)
        g = None if gradient is None else gradient.reshape(-1)
        for start, stop in _chunks(len(values), width):
            stored = values[start:stop]
            c = stored.to(compute_dtype)
            new = zero if g is None else g[start:stop].to(compute_dtype)
            c.lerp_(new.expand_as(c), 1 - decay)
            if c is not stored:
                stored.copy_(c)
            _add(total, stored, first_block + start // width, keys)
        first_block += n_blocks(len(values), width)
    return total


def _chunks(numel: int, width: int) -> list[tuple[int, int]]:
    step = max(1, _CHUNK // width) * width
    return [(start, min(start + step, numel)) for start in range(0, numel, step)]


def _add(total: Tensor, values: Tensor, first_block: int, keys: tuple[int, int]) -> None:
    """Add the signed values of whole blocks (the last may be short) to their buckets."""
    width, device = len(total), total.device
    shift_key, sign_key = keys
    count = n_blocks(len(values), width)
    x = torch.nn.functional.pad(values.double(), (0, count * width - len(values)))
    blocks = torch.arange(first_block, first_block + count, device=device)
    places = torch.arange(width, device=device)
    words = blocks[:, None] * (width // 32) + places[: width // 32]
    bits = hashes(words, sign_key)[..., None] >> torch.arange(32, device=device)
    signed = x.view(-1, width) * (1.0 - 2.0 * (bits & 1)).reshape(-1, width)
    shifts = hashes(blocks, shift_key) & (width - 1)
    total += signed.gather(1, places ^ shifts[:, None]).sum(dim=0)
