"""Cache update, dot product and norms in torch, block by block in one pass over memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor

from .._layout import flat, flat_like
from .._types import CacheSums, TensorMetric

# Elements of a block on a CPU, for each of the threads that torch divides a block among: three fp32
# operands of 2**17 elements are 1.5 MB, so that a core's L2 cache of 2 MB keeps them from the
# update to the products. 40 M parameters on 2 cores of a Xeon, 2026-11: 38 ms with 2**15, 32 ms
# with 2**16, 31 ms with 2**17, 32 ms with 2**18. The block fixes the order of summation, hence the
# bits, for a number of threads.
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
    scratch = _Scratch()
    partials: list[Tensor] = []
    for index, tensor in enumerate(cache):
        found = _one_tensor(
            tensor,
            None if reference is None else reference[index],
            None if candidate is None else candidate[index],
            decay=None if reference is None else decay,
            row_decay=None if row_decay is None or reference is None else row_decay[index],
            metric=None if metric is None else metric[index],
            scratch=scratch,
        )
        partials += found if tensor.device == device else [sum_.to(device) for sum_ in found]
    sums = torch.stack(partials).view(-1, 3)
    return CacheSums(*sums.sum(dim=0, dtype=torch.float64))


def _one_tensor(
    tensor: Tensor,
    gradient: Tensor | None,
    candidate: Tensor | None,
    *,
    decay: float | None,
    row_decay: Tensor | None,
    metric: TensorMetric | None,
    scratch: _Scratch,
) -> list[Tensor]:
    """Update one tensor; return ⟨c, k⟩, ⟨c, c⟩ and ⟨k, k⟩ of its blocks, one after the other."""
    row_length = 1 if row_decay is None else tensor[0].numel()
    block = _GPU_BLOCK if tensor.is_cuda else _CPU_BLOCK * torch.get_num_threads()
    block = max(1, block // row_length) * row_length
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    partials: list[Tensor] = []
    for stored, g, k, v, rows in zip(
        _cut(flat(tensor), block),
        _blocks(gradient, tensor, block),
        _blocks(candidate, tensor, block),
        _blocks(None if metric is None else metric.second_moment, tensor, block),
        repeat(None) if row_decay is None else _cut(row_decay, block // row_length),
        strict=False,  # what is missing is missing in every block
    ):
        c = scratch.widen("cache", stored, dtype)
        if decay is not None:
            # A missing gradient is one zero, seen at every position.
            new = c.new_zeros(()).expand_as(c) if g is None else scratch.widen("g", g, dtype)
            if rows is None:
                c.lerp_(new, 1 - decay)
            else:
                old = rows[:, None].to(dtype)
                c.view(-1, row_length).lerp_(new.reshape(-1, row_length), 1 - old)
            if c is not stored:
                # What counts is what was stored, rounded.
                stored.copy_(c)
                c.copy_(stored)
        # By now the reference gradient has done its part, and the candidate can take its place.
        k = None if k is None else scratch.widen("g", k, dtype)
        partials += _sums(c, k) if metric is None else _weighted_sums(c, k, metric, v, scratch)
    return partials


def _blocks(operand: Tensor | None, like: Tensor, block: int) -> Iterable[Tensor | None]:
    """Cut an operand, laid out like another tensor; what is missing is missing in every block."""
    return repeat(None) if operand is None else _cut(flat_like(operand, like), block)


def _cut(values: Tensor, length: int) -> Sequence[Tensor]:
    return torch.split(values, length) if len(values) > length else (values,)


def _sums(c: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if k is None:
        zero = c.new_zeros(())
        return zero, torch.dot(c, c), zero
    return torch.dot(c, k), torch.dot(c, c), torch.dot(k, k)


def _weighted_sums(
    c: Tensor, k: Tensor | None, metric: TensorMetric, v: Tensor | None, scratch: _Scratch
) -> tuple[Tensor, Tensor, Tensor]:
    root = None
    if v is not None:
        root = scratch.take("root", c, c.dtype).copy_(v)
        root.div_(metric.bias_correction).sqrt_().add_(metric.eps)

    def weigh(x: Tensor) -> Tensor:
        weighted = scratch.take("weighted", x, x.dtype)
        if root is None:
            return torch.mul(x, metric.scale, out=weighted)
        return torch.div(x, root, out=weighted).mul_(metric.scale)

    weighted = weigh(c)
    zero = c.new_zeros(())
    dot = zero if k is None else torch.dot(weighted, k)
    cache_sqnorm = torch.dot(weighted, c)
    return dot, cache_sqnorm, zero if k is None else torch.dot(weigh(k), k)


class _Scratch:
    """Blocks for intermediate results, one for each role.

    Kept for all tensors: allocating a block anew for each conversion took half of the time.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, role: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the role's block, as long as `like`; it holds what it held before."""
        key = role, dtype, like.device
        block = self._blocks.get(key)
        if block is None or len(block) < len(like):
            block = self._blocks[key] = torch.empty_like(like, dtype=dtype)
        return block[: len(like)]

    def widen(self, role: str, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the values in the dtype: themselves, or a copy in the role's block."""
        return values if values.dtype == dtype else self.take(role, values, dtype).copy_(values)
