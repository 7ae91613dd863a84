"""Score every proposal of a detection head: ghost scoring against per-sample gradients.

The head is of real size: 512 proposals of 12544 features, layers 12544 -> 1024 -> 1024 -> 1204,
15 M parameters. Every case starts from the features, ends with each unit's dot product with a fixed
reference gradient and, except captum, its norm; results are compared. Three tasks: every proposal
is a unit (`rows`), 64 objects of 8 proposals each are (`objects`), and 16 proposals are (`few`),
for captum and dattri, which do not end within a quarter of an hour on 512.

- `ours`: `bsgal_score.GhostScorer`, all 512 rows at once.
- `loop`: one call of autograd per unit, the simplest thing that works.
- `vmap`: `torch.func.vmap(grad)` in chunks; dot product and norm are taken inside, so that the
  per-sample gradients are the only large thing.
- `opacus`: `GradSampleModule`, which keeps per-sample gradients on the parameters.
- `captum`: `TracInCP` with per-sample gradients from one pass a batch, reference aggregated. It
  gives dot products only and computes the reference gradient itself (16 rows; the rest of it is
  given).
- `dattri`: `TracInAttributor`, normalised, without projection; it computes the reference too.

Per-sample gradients of 512 rows are 31 GB, so the peers work in chunks (`--chunk`; for dattri,
which copies them, a quarter). trak is left out: it returns another quantity (projected gradients
weighed by an inverse kernel), and takes its gradients from `vmap(grad)`.

`max_rel_diff` is mostly the rounding of the peers' norms, float32 sums over 12.8 M elements.

Memory is the rise of the peak resident size over what the process held before, in a process of its
own for every case, after a small warm-up. `above_step_bytes` is what remains of it in training: the
peak of scoring and then taking a plain step (forward, backward), above the peak of that step alone.
Our scores share the step's forward pass; `forward_bytes` is what that takes by itself.

`python benchmarks/bench_score_peers.py` writes `benchmarks/results/score_peers.json`. Peers are in
`benchmarks/requirements.txt`; one that is not installed is reported as missing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from _harness import require_tests, time_in_turn, write_result
from score_memory import numbers_of_new_process, peak_rise_bytes
from torch import Tensor, nn
from torch.nn import functional

from bsgal_score import GhostScorer, GradientCache

N_ROWS, N_FEW, ROWS_PER_OBJECT, N_REFERENCE = 512, 16, 8, 16
WIDTHS = (12544, 1024, 1024, 1204)
N_THREADS = 2
PEERS = {"vmap": "torch", "opacus": "opacus", "captum": "captum", "dattri": "dattri"}
TASKS = {
    "rows": ("ours", "loop", "vmap", "opacus"),
    "objects": ("ours", "loop", "vmap"),
    "few": ("ours", "loop", "vmap", "opacus", "captum", "dattri"),
}
Scores = tuple[Tensor, Tensor | None]
"""Dot products and norms by unit."""
Measured = tuple[list[dict[str, Any]], float]
"""Rows of the result, and the largest difference between two cases' scores."""


class Task:
    """A head, its features and labels, and a fixed reference gradient."""

    def __init__(self, n_rows: int, chunk: int) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)  # initial weights
        layers: list[nn.Module] = []
        for n_inputs, n_outputs in pairwise(WIDTHS):
            layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
        self.head = nn.Sequential(*layers[:-1])
        self.chunk = chunk
        self.features = torch.randn(n_rows, WIDTHS[0], generator=generator).relu_()
        self.labels = torch.randint(WIDTHS[-1], (n_rows,), generator=generator)
        self.reference = (
            torch.randn(N_REFERENCE, WIDTHS[0], generator=generator).relu_(),
            torch.randint(WIDTHS[-1], (N_REFERENCE,), generator=generator),
        )
        self.parameters = dict(self.head.named_parameters())
        self.cache = GradientCache(self.head.named_parameters(), decay=0.0)
        loss = functional.cross_entropy(self.head(self.reference[0]), self.reference[1])
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        self.cache.update(dict(zip(self.parameters, gradients, strict=True)))
        self.flat_cache = {name: self.cache[name].flatten() for name in self.cache.names}

    def chunks(self) -> list[slice]:
        """Cut the rows into chunks."""
        n = len(self.features)
        return [slice(start, start + self.chunk) for start in range(0, n, self.chunk)]

    def forward(self) -> Tensor:
        """Take the loss of all rows."""
        return functional.cross_entropy(self.head(self.features), self.labels, reduction="sum")

    def step(self) -> None:
        """Take what is left of a training step once there are scores: forward and backward."""
        self.forward().backward()


def ours(task: Task, unit_index: Tensor, *, in_step: bool = False) -> Scores:
    """Score all units with one forward and one backward pass, which a training step can share."""
    with GhostScorer(task.head, task.cache) as scorer:
        loss = task.forward()
        scores = scorer.score(loss, unit_index, update_cache=False)
    if in_step:
        loss.backward()
    return scores.dot, scores.norm


def loop(task: Task, rows_per_unit: int) -> Scores:
    """Take one gradient per unit by autograd."""
    dots, norms = [], []
    parameters = list(task.parameters.values())
    for start in range(0, len(task.features), rows_per_unit):
        rows = slice(start, start + rows_per_unit)
        outputs = task.head(task.features[rows])
        loss = functional.cross_entropy(outputs, task.labels[rows], reduction="sum")
        flat = [g.flatten() for g in torch.autograd.grad(loss, parameters)]
        caches = task.flat_cache.values()
        dots.append(sum(torch.dot(g, c) for g, c in zip(flat, caches, strict=True)))
        norms.append(sum(torch.linalg.vector_norm(g).square() for g in flat))
    return torch.stack(dots), torch.stack(norms).sqrt()


def vmap(task: Task, rows_per_unit: int) -> Scores:
    """Map the gradient over units, and take its products before it is given back."""
    parameters = {name: p.detach() for name, p in task.parameters.items()}

    def loss(weights: dict[str, Tensor], features: Tensor, labels: Tensor) -> Tensor:
        outputs = torch.func.functional_call(task.head, weights, (features,))
        return functional.cross_entropy(outputs, labels, reduction="sum")

    def scores(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        gradients = torch.func.grad(loss)(parameters, features, labels)
        flat = {name: gradient.flatten() for name, gradient in gradients.items()}
        dot = sum(torch.dot(g, task.flat_cache[name]) for name, g in flat.items())
        return dot, sum(torch.linalg.vector_norm(g).square() for g in flat.values())

    features = task.features.view(-1, rows_per_unit, WIDTHS[0])
    labels = task.labels.view(-1, rows_per_unit)
    chunk = min(task.chunk, len(features))
    dot, sqnorm = torch.func.vmap(scores, chunk_size=chunk)(features, labels)
    return dot, sqnorm.sqrt()


def opacus(task: Task) -> Callable[[], Scores]:
    """Let opacus keep per-sample gradients, chunk by chunk."""
    from opacus import GradSampleModule

    # A copy, since its hooks stay on the layers.
    module = GradSampleModule(copy.deepcopy(task.head), loss_reduction="sum")
    parameters = dict(module._module.named_parameters())

    def run() -> Scores:
        dots, norms = [], []
        for rows in task.chunks():
            outputs = module(task.features[rows])
            functional.cross_entropy(outputs, task.labels[rows], reduction="sum").backward()
            dot, sqnorm = torch.zeros(2, len(outputs)).unbind()
            for name, parameter in parameters.items():
                flat = parameter.grad_sample.flatten(1)
                dot += flat @ task.flat_cache[name]
                sqnorm += torch.linalg.vector_norm(flat, dim=1).square()
                parameter.grad_sample = parameter.grad = None
            dots.append(dot)
            norms.append(sqnorm.sqrt())
        return torch.cat(dots), torch.cat(norms)

    return run


def captum(task: Task) -> Callable[[], Scores]:
    """Trace influence in one checkpoint: the weights of now, with learning rate 1."""
    from captum.influence import TracInCP

    tracin = TracInCP(
        copy.deepcopy(task.head),
        torch.utils.data.TensorDataset(task.features, task.labels),
        checkpoints=["now"],
        checkpoints_load_func=lambda *_: 1.0,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        test_loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=task.chunk,
        sample_wise_grads_per_batch=True,
    )

    def run() -> Scores:
        dots = tracin.influence(task.reference, aggregate=True)
        return dots.flatten() / N_REFERENCE, None

    return run


def dattri(task: Task) -> Callable[[], Scores]:
    """Let dattri take cosines; its norms stay inside."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    head = copy.deepcopy(task.head)

    def loss(weights: Any, data: tuple[Tensor, Tensor]) -> Tensor:
        features, label = data
        outputs = torch.func.functional_call(head, weights, (features.view(-1, WIDTHS[0]),))
        return functional.cross_entropy(outputs, label.flatten())

    attributor = TracInAttributor(
        AttributionTask(loss, head, head.state_dict()),
        weight_list=torch.ones(1), normalized_grad=True,
    )  # fmt: skip
    attributor.projector_kwargs = None  # exact gradients; the constructor has no way to say so
    candidates = TensorDataset(task.features, task.labels)
    # One test item that holds all reference rows: its gradient is theirs.
    reference = TensorDataset(*(tensor[None] for tensor in task.reference))

    def run() -> Scores:
        with contextlib.redirect_stderr(io.StringIO()):
            cosines = attributor.attribute(
                DataLoader(candidates, batch_size=max(1, task.chunk // 4)), DataLoader(reference)
            )
        return cosines.flatten(), None

    return run


def n_rows_of(kind: str, n_rows: int) -> int:
    """Return the number of rows of a task."""
    return min(N_FEW, n_rows) if kind == "few" else n_rows


def units_of(task: Task, kind: str) -> tuple[Tensor, int]:
    """Return the unit of each row, and the number of rows of a unit."""
    per_unit = ROWS_PER_OBJECT if kind == "objects" else 1
    return torch.arange(len(task.features)) // per_unit, per_unit


def cases(task: Task, kind: str) -> dict[str, Callable[[], Scores]]:
    """Return the cases of one task that can run here."""
    unit_index, per_unit = units_of(task, kind)
    make: dict[str, Callable[[], Callable[[], Scores]]] = {
        "ours": lambda: lambda: ours(task, unit_index),
        "loop": lambda: lambda: loop(task, per_unit),
        "vmap": lambda: lambda: vmap(task, per_unit),
        "opacus": lambda: opacus(task),
        "captum": lambda: captum(task),
        "dattri": lambda: dattri(task),
    }
    return {
        name: make[name]()
        for name in TASKS[kind]
        if importlib.util.find_spec(PEERS.get(name, "torch")) is not None
    }


def difference(name: str, found: Scores, expected: Scores, cache_norm: float) -> float:
    """Return the largest difference, of dot products relative to ‖c‖‖g‖ and of norms to ‖g‖."""
    dot, norm = expected
    assert norm is not None
    if name == "dattri":
        return float((found[0].double() - dot / norm / cache_norm).abs().max())
    worst = float(((found[0].double() - dot) / norm).abs().max()) / cache_norm
    if found[1] is not None:
        worst = max(worst, float(((found[1].double() - norm) / norm).abs().max()))
    return worst


def print_memory(kind: str, name: str, n_rows: int, chunk: int) -> None:
    """Print two rises of the peak resident size, alone and with a step; for a process of its own.

    Two more cases are `forward`, a forward pass with its graph, and `step`.
    """

    def runs(task: Task) -> list[Callable[[], object]]:
        if name in ("forward", "step"):
            return [getattr(task, name)]
        alone = cases(task, kind)[name]
        unit_index, _ = units_of(task, kind)
        if name == "ours":
            return [alone, lambda: ours(task, unit_index, in_step=True)]
        return [alone, lambda: (alone(), task.step())]

    for run in runs(Task(ROWS_PER_OBJECT, ROWS_PER_OBJECT)):
        run()
    task = Task(n_rows, chunk)
    for run in runs(task):
        print(peak_rise_bytes(run))
        task.head.zero_grad()


def measure_memory(kind: str, name: str, n_rows: int, chunk: int) -> list[int]:
    """Return what `print_memory` prints in a new process."""
    sizes = "--rows", str(n_rows), "--chunk", str(chunk)
    return numbers_of_new_process(__file__, "--memory-of", kind, name, *sizes)


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the Markdown table, made from the result alone."""
    titles = {
        "rows": "every proposal a unit", "objects": "64 objects of 8", "few": "16 proposals",
    }  # fmt: skip
    measured = [row for row in result["rows"] if "missing" not in row]
    tasks = [task for task in titles if any(row["task"] == task for row in measured)]
    memory = {"peak_extra_bytes": "extra memory", "above_step_bytes": "beside a step"}
    keys = [key for key in memory if all(key in row for row in measured)]
    heads = [head for task in tasks for head in (titles[task], *(memory[key] for key in keys))]
    lines = [f"| case | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    found = {(row["case"], row["task"]): row for row in measured}
    for case in dict.fromkeys(row["case"] for row in result["rows"]):
        cells = [case]
        for task in tasks:
            row = found.get((case, task))
            if row is None:
                cells += ["-"] * (1 + len(keys))
            else:
                cells += [
                    f"{row['median_s']:.2f} s",
                    *(f"{row[key] / 1e6:,.0f} MB" for key in keys),
                ]
        lines.append(f"| {' | '.join(cells)} |")
    return {"peers": "\n".join(lines)}


def measure(kind: str, names: Sequence[str], n_rows: int, chunk: int, rounds: int) -> Measured:
    """Compare the scores of all cases of one task, and measure their time and memory."""
    task = Task(n_rows, chunk)
    chosen = {name: run for name, run in cases(task, kind).items() if name in names}
    expected = chosen["ours"]()
    cache_norm = task.cache.norm()
    worst = max(difference(name, run(), expected, cache_norm) for name, run in chosen.items())
    (forward_bytes,), (step_bytes,) = (
        measure_memory(kind, name, n_rows, chunk) for name in ("forward", "step")
    )
    rows = []
    # Every case has just run once, which warms it up.
    for name, timing in time_in_turn(chosen, rounds=rounds, warmup=0).items():
        low, median, high = timing.quantiles_s()
        alone, with_step = measure_memory(kind, name, n_rows, chunk)
        rows.append(
            {
                "task": kind,
                "case": name,
                "n_rows": n_rows,
                "chunk": chunk // 4 if name == "dattri" else chunk,
                "n_threads": N_THREADS,
                "median_s": median,
                "q20_s": low,
                "q80_s": high,
                "peak_extra_bytes": alone,
                "above_step_bytes": max(0, with_step - step_bytes),
                "forward_bytes": forward_bytes,
                "step_bytes": step_bytes,
            }
        )
        memory = " ".join(f"{n / 1e6:9.1f}" for n in (alone, with_step, step_bytes, forward_bytes))
        print(f"{kind:<8}{name:<8}{median:8.3f} s {memory} MB", flush=True)
    return rows, worst


def headline_of(rows: list[dict[str, Any]], parameter_bytes: int) -> dict[str, float]:
    """Return every case's time and memory as multiples of ours."""
    found: dict[str, float] = {}
    ours_of = {row["task"]: row for row in rows if row["case"] == "ours"}
    for row in rows:
        own = ours_of[row["task"]]
        if row is own:
            continue
        name = row["case"] if row["task"] == "rows" else f"{row['task']}_{row['case']}"
        found[f"{name}_over_ours_time"] = row["median_s"] / own["median_s"]
        if row["task"] != "few":  # there ours is a matter of single pages
            found[f"{name}_over_ours_memory"] = row["peak_extra_bytes"] / own["peak_extra_bytes"]
    own = ours_of["rows"]
    # What the gradients alone would take if they were held at once, as without chunks.
    all_gradients = own["n_rows"] * parameter_bytes
    found["unchunked_over_ours_memory"] = all_gradients / own["peak_extra_bytes"]
    for name in ("peak_extra_bytes", "above_step_bytes", "forward_bytes", "step_bytes"):
        found[f"ours_{name}"] = own[name]
    return found


def main() -> None:
    """Time all cases in turn, measure their memory, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=N_ROWS, help="number of proposals")
    parser.add_argument("--chunk", type=int, default=64, help="per-sample gradients at a time")
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="libraries to compare with"
    )
    parser.add_argument("--quick", action="store_true", help="8 proposals, writes nothing")
    parser.add_argument("--memory-of", nargs=2, metavar=("TASK", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(N_THREADS)
    warnings.filterwarnings("ignore")  # the peers' remarks about hooks and defaults
    n_rows, chunk, rounds = arguments.rows, arguments.chunk, arguments.rounds
    if arguments.quick:
        n_rows, chunk, rounds = 8, 4, 1
    if arguments.memory_of:
        print_memory(*arguments.memory_of, n_rows, chunk)
        return
    if not arguments.quick:
        require_tests(
            "packages/bsgal-score/tests/test_ghost.py",
            "packages/bsgal-score/tests/test_ghost_ops.py",
        )
    rows: list[dict[str, Any]] = []
    worst = 0.0
    for kind in TASKS:
        own_rows = n_rows_of(kind, n_rows)
        names = ("ours", "loop", *arguments.peers)
        found, difference_found = measure(kind, names, own_rows, min(chunk, own_rows), rounds)
        rows += found
        worst = max(worst, difference_found)
    headline = {"max_rel_diff": worst, "chunk": chunk, "n_rows": n_rows}
    parameters = Task(1, 1).parameters.values()
    headline |= headline_of(rows, sum(4 * p.numel() for p in parameters))
    for name, library in PEERS.items():
        if name not in arguments.peers:
            rows.append({"task": "few", "case": name, "missing": "left out of this run"})
        elif importlib.util.find_spec(library) is None:
            rows.append({"task": "few", "case": name, "missing": f"{library} is not installed"})
    if arguments.quick:
        print(json.dumps(headline, indent=1))
        return
    installed = [library for library in PEERS.values() if importlib.util.find_spec(library)]
    write_result("score_peers", rows=rows, headline=headline, libraries=installed)


if __name__ == "__main__":
    main()
