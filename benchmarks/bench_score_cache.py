"""Time one cache update with dot product and norms: what every scoring step costs at least.

Cases, on tensors of a ResNet's shapes, all on two threads:

- `official`: the released code's sequence: clone, flatten and concatenate both gradients, scale and
  add the cache, multiply, sum, two norms.
- `foreach`: the same per tensor with torch's `_foreach` functions and `dot`.
- `ours`: `bsgal_score.ops.cache_update_dot`.
- `checked`: `GradientCache.update_and_score`, which looks for NaN and Inf first.
- `copy`: copying as many bytes as the task must move at least (read c, g and k, write c).

`python benchmarks/bench_score_cache.py` writes `benchmarks/results/score_cache.json`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from _harness import peak_extra_bytes, require_tests, time_in_turn, write_result
from torch import Tensor

from bsgal_score import GradientCache
from bsgal_score.ops import cache_update_dot

N_THREADS = 2
DECAY = 0.1
HEADLINE_SIZE = 40_000_000
SIZES = (1_000_000, 10_000_000, HEADLINE_SIZE, 200_000_000)
# The layers of a ResNet-50's last two stages, weights and biases.
SHAPES = (
    (256, 1024, 1, 1), (256,), (256, 256, 3, 3), (256,), (1024, 256, 1, 1), (1024,),
    (512, 2048, 1, 1), (512,), (512, 512, 3, 3), (512,), (2048, 512, 1, 1), (2048,),
)  # fmt: skip


def shapes_with(n_elements: int) -> list[tuple[int, ...]]:
    """Repeat the layers until they hold `n_elements`; the last tensor takes what is missing."""
    chosen: list[tuple[int, ...]] = []
    missing = n_elements
    for shape in cycle(SHAPES):
        if math.prod(shape) >= missing:
            return [*chosen, (missing,)]
        chosen.append(shape)
        missing -= math.prod(shape)
    raise AssertionError("the cycle has no end")


def make_cases(n_elements: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Make the cases; each has a cache of its own."""
    generator = torch.Generator().manual_seed(0)
    shapes = shapes_with(n_elements)
    g, k = ([torch.randn(s, generator=generator).to(dtype) for s in shapes] for _ in range(2))
    flat_cache = torch.zeros(n_elements, dtype=dtype)
    foreach_cache, our_cache = ([torch.zeros(s, dtype=dtype) for s in shapes] for _ in range(2))
    parameters = [torch.zeros(s, dtype=dtype, requires_grad=True) for s in shapes]
    checked = GradientCache(
        ((str(i), p) for i, p in enumerate(parameters)), decay=DECAY, dtype=dtype
    )
    named_g, named_k = ({str(i): x for i, x in enumerate(xs)} for xs in (g, k))
    source, target = (torch.zeros(2 * n_elements, dtype=dtype) for _ in range(2))

    def official() -> Tensor:
        nonlocal flat_cache
        reference = torch.cat([x.clone().flatten() for x in g])
        flat_cache = flat_cache * DECAY + reference * (1 - DECAY)
        candidate = torch.cat([x.clone().flatten() for x in k])
        product = (flat_cache * candidate).sum()
        return product / (flat_cache.norm() * candidate.norm() + 1e-8)

    def foreach() -> Tensor:
        torch._foreach_lerp_(foreach_cache, g, 1 - DECAY)
        dots = [torch.dot(c.view(-1), x.view(-1)) for c, x in zip(foreach_cache, k, strict=True)]
        norms = [torch.stack(torch._foreach_norm(xs)).norm() for xs in (foreach_cache, k)]
        return torch.stack(dots).sum() / (norms[0] * norms[1])

    return {
        "official": official,
        "foreach": foreach,
        "ours": lambda: cache_update_dot(our_cache, g, k, decay=DECAY),
        "checked": lambda: checked.update_and_score(named_g, named_k),
        "copy": lambda: target.copy_(source),
    }


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the Markdown table, made from the result alone."""
    by_size: dict[tuple[int, str], dict[str, float]] = {}
    for row in result["rows"]:
        key = row["n_elements"], row["dtype"]
        by_size.setdefault(key, {})[row["case"]] = row["median_ms"]
    names = list(next(iter(by_size.values())))
    lines = [
        f"| parameters | dtype | {' | '.join(f'{name}, ms' for name in names)} | official / ours "
        "| ours / copy |",
        "|---" * (4 + len(names)) + "|",
    ]
    for (n_elements, dtype), times in by_size.items():
        cells = [f"{n_elements / 1e6:g} M", dtype, *(f"{times[name]:.2f}" for name in names)]
        ratios = times["official"] / times["ours"], times["ours"] / times["copy"]
        lines.append(f"| {' | '.join(cells)} | {ratios[0]:.1f} | {ratios[1]:.2f} |")
    return {"times": "\n".join(lines)}


def main() -> None:
    """Time all sizes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds per size")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="largest number of elements")
    parser.add_argument("--quick", action="store_true", help="1 M elements, writes nothing")
    arguments = parser.parse_args()
    if not arguments.quick:
        require_tests("packages/bsgal-score/tests/test_cache_update_dot.py")
    torch.set_num_threads(N_THREADS)
    rows, headline = [], {}
    largest = SIZES[0] if arguments.quick else arguments.largest
    for n_elements in (size for size in SIZES if size <= largest):
        for dtype in (torch.float32, torch.bfloat16):
            cases = make_cases(n_elements, dtype)
            timings = time_in_turn(cases, rounds=arguments.rounds)
            for name, timing in timings.items():
                low, median, high = timing.quantiles_s()
                rows.append(
                    {
                        "case": name,
                        "n_elements": n_elements,
                        "dtype": str(dtype).removeprefix("torch."),
                        "n_threads": N_THREADS,
                        "median_ms": 1e3 * median,
                        "q20_ms": 1e3 * low,
                        "q80_ms": 1e3 * high,
                        "gb_per_s": 4 * n_elements * dtype.itemsize / median / 1e9,
                    }
                )
                print(f"{n_elements:>11,} {rows[-1]['dtype']:<9} {name:<9} {1e3 * median:9.2f} ms")
            if n_elements == HEADLINE_SIZE and dtype == torch.float32:
                ours = timings["ours"].median_s
                headline = {
                    "official_over_ours": timings["official"].median_s / ours,
                    "foreach_over_ours": timings["foreach"].median_s / ours,
                    "ours_over_copy": ours / timings["copy"].median_s,
                    "peak_extra_bytes": peak_extra_bytes(cases["ours"]),
                }
    if not arguments.quick:
        write_result("score_cache", rows=rows, headline=headline)


if __name__ == "__main__":
    main()
