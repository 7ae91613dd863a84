"""A pass over the cache needs no more than a few blocks beside its operands."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bsgal_score import GradientCache
from bsgal_score.ops import TensorMetric, cache_update_dot

BLOCK_BYTES = 4 * 2**17  # one thread, see conftest
# Two tensors of several blocks, the last of them short, and a small one.
SHAPES = [(1000, 1000), (513, 999), (7,)]


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensors that operations have made and that are still alive."""

    def __init__(self, *operands: torch.Tensor | None) -> None:
        super().__init__()
        self._known = [StorageWeakRef(t.untyped_storage()) for t in operands if t is not None]
        self._made: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for output in tree_leaves(result):
            if isinstance(output, torch.Tensor):
                storage = output.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in self._known:
                    self._made[reference] = storage.nbytes()
        self._made = {ref: n for ref, n in self._made.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._made.values()))
        return result


def operands(dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(shape).to(dtype) for shape in SHAPES]


def test_the_count_sees_what_is_alive_together():
    x = torch.zeros(1000)
    with LiveBytes(x) as live:
        y = x + 1
        z = y * 2 + x  # the product and the sum beside y
        del y, z
        x.view(-1).add_(1)
    assert live.peak == 3 * 4000


@pytest.mark.parametrize(
    ("dtypes", "with_metric", "n_blocks"),
    [
        ((torch.float32,) * 3, False, 0),
        ((torch.float32,) * 3, True, 2),
        ((torch.bfloat16,) * 3, False, 2),
        ((torch.float32, torch.bfloat16, torch.float16), False, 1),
    ],
)
def test_a_cache_update_needs_few_blocks_beside_its_operands(dtypes, with_metric, n_blocks):
    cache, g, k = map(operands, dtypes)
    second_moments = [x.float().square() for x in k]
    metric = [TensorMetric(0.1, v, 0.5, 1e-8) for v in second_moments] if with_metric else None
    with LiveBytes(*cache, *g, *k, *second_moments) as live:
        cache_update_dot(cache, g, k, decay=0.9, metric=metric)
    # The sums of the blocks are a few numbers each.
    assert n_blocks * BLOCK_BYTES <= live.peak <= n_blocks * BLOCK_BYTES + 2048


def test_rows_need_no_block_of_their_own():
    cache, g, k = (operands(torch.float32) for _ in range(3))
    row_decay = [torch.rand(len(tensor)) for tensor in cache]
    with LiveBytes(*cache, *g, *k, *row_decay) as live:
        cache_update_dot(cache, g, k, decay=0.9, row_decay=row_decay)
    assert live.peak <= BLOCK_BYTES / 8


@pytest.mark.parametrize("missing", [False, True])
def test_a_checked_update_and_score_needs_less_than_one_block(missing):
    parameters = [torch.nn.Parameter(x) for x in operands(torch.float32)]
    cache = GradientCache(((str(i), p) for i, p in enumerate(parameters)), decay=0.9)
    g, k = ({str(i): x for i, x in enumerate(operands(torch.float32))} for _ in range(2))
    if missing:
        g["0"] = k["1"] = None
    with LiveBytes(*(cache[n] for n in cache.names), *g.values(), *k.values()) as live:
        cache.update_and_score(g, k)
    assert live.peak < BLOCK_BYTES / 8
