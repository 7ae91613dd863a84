"""Cache update, dot product and norms in torch, block by block in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._layout import flat, flat_like
from .._types import CacheSums, TensorMetric

# Three fp32 blocks of 2**17 elements are 1.5 MB: they stay in a core's L2 cache of 2 MB between
# the update and the products. 40 M parameters on 2 cores of a Xeon, 2026-11: 29 ms with 2**16,
# 24 ms with 2**17, 23 ms with 2**18 (which no longer fits smaller caches). The block size fixes the
# order of summation, hence the bits.
_CPU_BLOCK = 1 << 17
# On a GPU nothing stays in cache between launches: few, large blocks, bounded extra memory.
_GPU_BLOCK = 1 << 24


def cache_update_dot_torch(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None] | None,
    candidate: Sequence[Tensor | None] | None,
    *,
    decay: float,
    row_decay: Sequence[Tensor | None] | None,
    metric: Sequence[TensorMetric | None] | None,
) -> CacheSums:
    """Update `cache` in place and return the three sums; arguments as in the public operation."""
    device = cache[0].device
    partials: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, tensor in enumerate(cache):
        gradient = None if reference is None else reference[index]
        k = None if candidate is None else candidate[index]
        rows = None if row_decay is None or reference is None else row_decay[index]
        partials.extend(
            _one_tensor(
                flat(tensor),
                None if gradient is None else flat_like(gradient, tensor),
                None if k is None else flat_like(k, tensor),
                decay=None if reference is None else decay,
                row_decay=rows,
                row_length=tensor[0].numel() if rows is not None else 1,
                metric=None if metric is None else metric[index],
                second_moment=_flat_second_moment(metric, index, tensor),
            )
        )
    sums = [
        torch.stack([partial[i].to(device) for partial in partials]).sum(dtype=torch.float64)
        for i in range(3)
    ]
    return CacheSums(*sums)


def _flat_second_moment(
    metric: Sequence[TensorMetric | None] | None, index: int, tensor: Tensor
) -> Tensor | None:
    entry = None if metric is None else metric[index]
    if entry is None or entry.second_moment is None:
        return None
    return flat_like(entry.second_moment, tensor)


def _one_tensor(
    cache: Tensor,
    gradient: Tensor | None,
    candidate: Tensor | None,
    *,
    decay: float | None,
    row_decay: Tensor | None,
    row_length: int,
    metric: TensorMetric | None,
    second_moment: Tensor | None,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    compute_dtype = torch.float64 if cache.dtype == torch.float64 else torch.float32
    zero = torch.zeros((), dtype=compute_dtype, device=cache.device)
    block = _GPU_BLOCK if cache.device.type == "cuda" else _CPU_BLOCK
    if row_decay is not None:
        block = max(1, block // row_length) * row_length
    scratch = _Scratch(compute_dtype, min(block, cache.numel()))
    partials: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, cache.numel(), block):
        stored = cache[start : start + block]
        stop = start + stored.numel()
        c = scratch.widen("cache", stored)
        if decay is not None:
            # A missing gradient is one zero, seen at every position.
            g = (
                zero.expand_as(c)
                if gradient is None
                else scratch.widen("reference", gradient[start:stop])
            )
            if row_decay is None:
                c.lerp_(g, 1 - decay)
            else:
                rows = row_decay[start // row_length : stop // row_length, None].to(compute_dtype)
                c.view(-1, row_length).lerp_(g.reshape(-1, row_length), 1 - rows)
            if c is not stored:
                # What counts is what was stored, rounded.
                c.copy_(stored.copy_(c))
        k = None if candidate is None else scratch.widen("candidate", candidate[start:stop])
        c_weighted, k_weighted = c, k
        if metric is not None:
            v = None if second_moment is None else second_moment[start:stop].to(compute_dtype)
            c_weighted = _weigh(c, metric, v)
            k_weighted = None if k is None else _weigh(k, metric, v)
        partials.append(
            (
                zero if k is None else torch.dot(c_weighted, k),
                torch.dot(c_weighted, c),
                zero if k is None or k_weighted is None else torch.dot(k_weighted, k),
            )
        )
    return partials


class _Scratch:
    """Blocks that hold narrow operands in the dtype of the sums, one after the other.

    Made once: allocating such a block anew for each conversion took half of the time.
    """

    def __init__(self, dtype: torch.dtype, block: int) -> None:
        self._dtype, self._block = dtype, block
        self._blocks: dict[str, Tensor] = {}

    def widen(self, role: str, values: Tensor) -> Tensor:
        """Return the values in the dtype of the sums: themselves, or a copy in the role's block."""
        if values.dtype == self._dtype:
            return values
        if role not in self._blocks:
            self._blocks[role] = torch.empty(self._block, dtype=self._dtype, device=values.device)
        return self._blocks[role][: values.numel()].copy_(values)


def _weigh(x: Tensor, metric: TensorMetric, second_moment: Tensor | None) -> Tensor:
    if second_moment is None:
        return x * metric.scale
    root = (second_moment / metric.bias_correction).sqrt_().add_(metric.eps)
    return torch.div(x, root, out=root).mul_(metric.scale)
