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
    shift_key, sign_key = stream_key(seed, SHIFTS), stream_key(seed, SIGNS)
    bits = torch.arange(32, device=device)
    places = torch.arange(width, device=device)
    step = max(1, _CHUNK // width)
    first_block = 0
    for tensor, numel in zip(tensors, numels, strict=True):
        count = n_blocks(numel, width)
        if tensor is not None:
            values = tensor.reshape(-1)
            for start in range(0, count, step):
                blocks = torch.arange(start, min(start + step, count), device=device)
                x = values[start * width : (start + len(blocks)) * width].double()
                x = torch.nn.functional.pad(x, (0, len(blocks) * width - len(x)))
                blocks = blocks + first_block
                words = blocks[:, None] * (width // 32) + places[: width // 32]
                signs = 1.0 - 2.0 * ((hashes(words, sign_key)[..., None] >> bits) & 1)
                signed = x.view(-1, width) * signs.reshape(-1, width).to(x.device)
                shifts = hashes(blocks, shift_key) & (width - 1)
                total += signed.gather(1, places ^ shifts[:, None]).sum(dim=0)
        first_block += count
    return total
