"""How scoring grows with parameters, units and rows, and what it adds to a real training step.

- `parameters`: one cache update with dot product and norms, 1 M to 64 M parameters, fp32.
- `units`: ghost scoring of 512 rows of a box head that form 1 to 512 units.
- `rows`: the same with 64 to 2048 rows, eight a unit.
- `detector`: a training step (forward, backward, no optimizer) of torchvision's Mask R-CNN with a
  ResNet-50, two images of 320 x 320 pixels, 512 proposals each, without and with a scorer on the
  box head: reference rows feed the cache, four pasted objects are scored.

Time, and the rise of the peak resident size over what the process holds before (parameters, cache,
features), in a process of its own for every case, after a first run. On two threads.

`python benchmarks/bench_score_growth.py` writes `benchmarks/results/score_growth.json` and
`docs/pictures/growth.png`. Needs torchvision and matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _harness import ROOT, require_tests, time_in_turn, write_result
from score_memory import numbers_of_new_process, peak_rise_bytes
from torch import nn
from torch.nn import functional

from bsgal_score import IGNORED, REFERENCE, GhostScorer, GradientCache
from bsgal_score.ops import cache_update_dot

N_THREADS = 2
SIZES = (1 << 20, 1 << 22, 1 << 24, 1 << 26)
N_UNITS = (1, 8, 64, 512)
N_ROWS = (64, 256, 1024, 2048)
FIGURE = ROOT / "docs" / "pictures" / "growth.png"
Case = Callable[[], object]


def update_case(n_elements: int) -> Case:
    """Make a cache update with its three sums."""
    cache, g, k = (torch.randn(n_elements) for _ in range(3))
    return lambda: cache_update_dot([cache], [g], [k], decay=0.9)


def unit_case(n_rows: int, n_units: int) -> Case:
    """Make the scoring of a box head's rows that form some units."""
    head = BoxHead(n_rows)
    return lambda: head.score(torch.arange(n_rows) * n_units // n_rows)


class BoxHead:
    """A box head of real size, its rows, and a scorer."""

    def __init__(self, n_rows: int) -> None:
        torch.manual_seed(0)
        self.head = nn.Sequential(
            nn.Linear(12544, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
            nn.Linear(1024, 1204),
        )  # fmt: skip
        self.features = torch.randn(n_rows, 12544).relu_()
        self.labels = torch.randint(1204, (n_rows,))
        self.cache = GradientCache(self.head.named_parameters(), decay=0.9)
        self.scorer = GhostScorer(self.head, self.cache)
        self.score(torch.full((n_rows,), REFERENCE))

    def score(self, unit_index: torch.Tensor) -> None:
        """Take one forward pass and score it."""
        with self.scorer:
            loss = functional.cross_entropy(self.head(self.features), self.labels)
            self.scorer.score(loss, unit_index)


def detector_case(image_px: int, n_proposals: int, *, score: bool) -> Case:
    """Make a training step of a Mask R-CNN, without or with scoring."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from torchvision.models.detection import roi_heads as module

    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81, min_size=image_px, max_size=image_px,
        box_batch_size_per_image=n_proposals,
    )  # fmt: skip
    heads = model.roi_heads
    cache = GradientCache(heads.named_parameters(), decay=0.9, exclude=["mask_*"])
    scorer = GhostScorer([heads.box_head, heads.box_predictor], cache)
    corner = torch.tensor([[0.05, 0.05], [0.55, 0.05], [0.05, 0.55], [0.55, 0.55]]) * image_px
    boxes = torch.cat([corner, corner + 0.35 * image_px], dim=1)
    masks = torch.ones(4, image_px, image_px, dtype=torch.uint8)
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 3, 4]), "masks": masks}
    images = [torch.rand(3, image_px, image_px) for _ in range(2)]
    # The first two objects of an image are real, the others pasted: units 0 to 3.
    units = [torch.tensor([REFERENCE, REFERENCE, 2 * i, 2 * i + 1]) for i in range(2)]
    seen: dict[str, Any] = {}

    select, fastrcnn_loss = heads.select_training_samples, module.fastrcnn_loss

    def selecting(*args: Any) -> Any:
        found = select(*args)
        _, matched, labels, _ = found
        seen["index"] = torch.cat(
            [
                torch.where(one > 0, of_object[match], IGNORED)
                for one, match, of_object in zip(labels, matched, units, strict=True)
            ]
        )
        return found

    def recording(*args: Any) -> Any:
        seen["losses"] = fastrcnn_loss(*args)
        return seen["losses"]

    def step() -> None:
        generator_state = torch.get_rng_state()
        heads.select_training_samples, module.fastrcnn_loss = selecting, recording
        try:
            if score:
                with scorer:
                    losses = model(images, [target, target])
                    scorer.score(sum(seen["losses"]), seen["index"], n_units=4)
            else:
                losses = model(images, [target, target])
        finally:
            heads.select_training_samples, module.fastrcnn_loss = select, fastrcnn_loss
        sum(losses.values()).backward()
        model.zero_grad()
        torch.set_rng_state(generator_state)  # the same proposals in every step

    return step


def axes(*, quick: bool) -> dict[str, dict[str, Callable[[], Case]]]:
    """Return by axis and value what makes a case."""
    sizes, counts, rows = (SIZES[:1], (1, 8), (16,)) if quick else (SIZES, N_UNITS, N_ROWS)
    n_rows = 16 if quick else 512
    image_px, n_proposals = (96, 32) if quick else (320, 512)
    return {
        "parameters": {str(n): partial(update_case, n) for n in sizes},
        "units": {str(n): partial(unit_case, n_rows, n) for n in counts},
        "rows": {str(n): partial(unit_case, n, n // 8) for n in rows},
        "detector": {
            name: partial(detector_case, image_px, n_proposals, score=score)
            for name, score in (("without", False), ("with scoring", True))
        },
    }


def print_memory(axis: str, value: str, *, quick: bool) -> None:
    """Print the extra memory of one case; for a process of its own."""
    run = axes(quick=quick)[axis][value]()
    run()
    print(peak_rise_bytes(run))


def measure_memory(axis: str, value: str, *, quick: bool) -> int:
    """Return what `print_memory` prints in a new process."""
    options = ("--quick",) if quick else ()
    return numbers_of_new_process(__file__, "--memory-of", axis, value, *options)[0]


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw time and memory against parameters, units and rows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for axis, name in zip(axes, ("parameters", "units", "rows"), strict=True):
        own = [row for row in rows if row["axis"] == name]
        values = [int(row["value"]) for row in own]
        axis.loglog(values, [row["median_ms"] for row in own], "o-", label="time, ms")
        memory = [row["peak_extra_bytes"] / 1e6 for row in own]
        axis.loglog(values, memory, "s--", label="extra memory, MB")
        axis.set(xlabel=name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=80)


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the Markdown table, made from the result alone."""
    lines = ["| axis | value | time, ms | extra memory, MB |", "|---" * 4 + "|"]
    for row in result["rows"]:
        value = f"{int(row['value']):,}" if row["value"].isdigit() else row["value"]
        megabytes = row["peak_extra_bytes"] / 1e6
        lines.append(f"| {row['axis']} | {value} | {row['median_ms']:.1f} | {megabytes:.1f} |")
    return {"growth": "\n".join(lines)}


def main() -> None:
    """Time all cases, axis by axis, and write result and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds per axis")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, writes nothing")
    parser.add_argument("--memory-of", nargs=2, metavar=("AXIS", "VALUE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.quick else N_THREADS)
    if arguments.memory_of:
        print_memory(*arguments.memory_of, quick=arguments.quick)
        return
    if not arguments.quick:
        require_tests("packages/bsgal-score/tests/test_ghost.py")
    rows: list[dict[str, Any]] = []
    medians: dict[tuple[str, str], float] = {}
    for axis, makers in axes(quick=arguments.quick).items():
        cases = {value: make() for value, make in makers.items()}
        timings = time_in_turn(cases, rounds=1 if arguments.quick else arguments.rounds)
        for value, timing in timings.items():
            low, median, high = timing.quantiles_s()
            medians[axis, value] = median
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "n_threads": N_THREADS,
                    "median_ms": 1e3 * median,
                    "q20_ms": 1e3 * low,
                    "q80_ms": 1e3 * high,
                    "peak_extra_bytes": measure_memory(axis, value, quick=arguments.quick),
                }
            )
            megabytes = rows[-1]["peak_extra_bytes"] / 1e6
            print(f"{axis:<12}{value:<14}{1e3 * median:9.1f} ms {megabytes:9.1f} MB", flush=True)
    headline = {
        "detector_with_over_without": medians["detector", "with scoring"]
        / medians["detector", "without"],
        "detector_extra_bytes": rows[-1]["peak_extra_bytes"] - rows[-2]["peak_extra_bytes"],
    }
    for axis in ("parameters", "units", "rows"):
        own = [(int(value), median) for (name, value), median in medians.items() if name == axis]
        # How many times as long for how many times as much.
        headline[f"{axis}_growth"] = own[-1][1] / own[0][1]
        headline[f"{axis}_range"] = own[-1][0] / own[0][0]
    if arguments.quick:
        print(headline)
        return
    write_result(
        "score_growth", rows=rows, headline=headline, libraries=("torch", "torchvision", "numpy")
    )
    draw(rows)


if __name__ == "__main__":
    main()
