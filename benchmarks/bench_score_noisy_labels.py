"""Train on labels of which a known share is wrong: what is it worth to choose, and by what?

A small network learns scikit-learn's handwritten digits from a trusted set, whose labels are right,
and a pool of 1,000 images, whose labels are wrong by chance: `symmetric` ones are any other digit,
`pair` ones the next digit. Every step takes 32 trusted images and 64 of the pool; a policy chooses
which of the 64 to train on. All policies of a seed share images, labels, initial weights and
batches.

- `all` of the pool, and `trusted`: none of it. `oracle`: those whose label is right.
- `random`, `small_loss` (`SmallLoss`), and the contributions `class_rows`, `cosine`, `dot` and
  `step` keep the same share of every 64: one less the share of wrong labels, which they are told,
  from `LinearSchedule(1.0, share, 100)`. The cache is that of the step's trusted images.
- `class_rows_real` is not told the share: `ReferenceQuantile(0.9)` keeps what scores like the 90 %
  of trusted images that score highest.

Test accuracy (497 images) after the last step, nothing tuned and no step chosen.

`python benchmarks/bench_score_noisy_labels.py` writes
`benchmarks/results/score_noisy_labels.json`. Finished runs are kept in `--progress`, so that it
goes on where it was stopped. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _harness import ROOT, provenance, require_tests, write_result
from torch import Tensor, nn
from torch.nn import functional

from bsgal_score import (
    REFERENCE,
    ClassRowScorer,
    GhostScorer,
    GradientCache,
    LinearSchedule,
    ReferenceQuantile,
    SmallLoss,
    StepModel,
)

POLICIES = (
    "all", "trusted", "random", "small_loss", "class_rows", "class_rows_real", "cosine", "dot",
    "step", "oracle",
)  # fmt: skip
NOISES = {"symmetric40": 0.4, "symmetric20": 0.2, "pair40": 0.4}
N_TRUSTED = (100, 300)
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
}
N_POOL, N_TEST = 1000, 497
TRUSTED_BATCH, POOL_BATCH, WARM_UP_STEPS = 32, 64, 100


@dataclass(frozen=True, slots=True)
class Data:
    """Images (N, 64) in [0, 1] and labels of one seed; `is_right` says which of the pool's are."""

    trusted: tuple[Tensor, Tensor]
    pool: tuple[Tensor, Tensor]
    is_right: Tensor
    test: tuple[Tensor, Tensor]


def make_data(seed: int, noise: str, n_trusted: int) -> Data:
    """Split the digits at random, and spoil the pool's labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target).long()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    pool, test, rest = order.split([N_POOL, N_TEST, len(order) - N_POOL - N_TEST])
    wrong = torch.rand(N_POOL, generator=generator) < NOISES[noise]
    offset = torch.randint(1, 10, (N_POOL,), generator=generator)
    if noise.startswith("pair"):
        offset = torch.ones_like(offset)
    given = torch.where(wrong, (labels[pool] + offset) % 10, labels[pool])
    trusted = rest[:n_trusted]
    return Data(
        (images[trusted], labels[trusted]), (images[pool], given), ~wrong,
        (images[test], labels[test]),
    )  # fmt: skip


def make_model() -> nn.Sequential:
    """Make the classifier, about 27,000 parameters."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


class Chooser:
    """Choose what to train on in a step's batch: its trusted images, then those of the pool."""

    def __init__(
        self, name: str, model: nn.Sequential, optimizer: torch.optim.Optimizer, kept_share: float
    ) -> None:
        self.name = name
        self.share = LinearSchedule(1.0, kept_share, WARM_UP_STEPS)
        # The best share of a step by any number is that with the smallest of its negative.
        self.policy = SmallLoss(self.share)
        self.real_policy = ReferenceQuantile(0.9)
        self.rows = ClassRowScorer(model[-1])
        self.step_model = StepModel(optimizer)
        self.ghost = GhostScorer(model, GradientCache(model.named_parameters(), decay=0.9))
        self.model = model

    def losses_and_kept(self, images: Tensor, labels: Tensor, is_right: Tensor) -> Any:
        """Return the losses of a batch and which of its pool images are kept, bool."""
        n = len(is_right)
        name = self.name
        if name in ("cosine", "dot", "step", "class_rows", "class_rows_real"):
            losses, values = self._contributions(images, labels)
        else:
            losses, values = self._losses(images, labels), []
        everything = {"all": torch.ones(n), "trusted": torch.zeros(n), "oracle": is_right}
        if name in everything:
            return losses, everything[name].bool()
        if name == "class_rows_real":
            decisions = [self.real_policy.decide(one) for one in values[TRUSTED_BATCH:]]
            self.real_policy.observe(values[:TRUSTED_BATCH])
            if self.share.n_steps < WARM_UP_STEPS:
                return losses, torch.ones(n).bool()
            return losses, torch.tensor([one.trains for one in decisions])
        if name == "small_loss":
            numbers: Sequence[float | None] = losses[TRUSTED_BATCH:].tolist()
        elif name == "random":
            numbers = torch.rand(n).tolist()
        else:
            numbers = [None if one is None else -one for one in values[-n:]]
        return losses, torch.tensor([one.trains for one in self.policy.decide_many(numbers)])

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(images), labels, reduction="none")

    def _contributions(
        self, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Sequence[float | None]]:
        if self.name.startswith("class_rows"):
            with self.rows:
                losses = self._losses(images, labels)
                is_trusted = torch.arange(len(labels)) < TRUSTED_BATCH
                units = torch.arange(len(labels))
                return losses, self.rows.score(losses.mean(), units, labels, is_trusted)
        index = torch.arange(len(labels)) - TRUSTED_BATCH
        index[:TRUSTED_BATCH] = REFERENCE
        # Adam has a metric only after its first step.
        form = self.name if self.share.n_steps else "dot"
        with self.ghost:
            losses = self._losses(images, labels)
            scores = self.ghost.score(
                losses.mean(), index, norms=form == "cosine",
                step=self.step_model if form == "step" else None,
            )  # fmt: skip
        return losses, scores.contributions(form)  # type: ignore[arg-type]  # one of the forms


def run(
    seed: int, noise: str, n_trusted: int, optimizer_name: str, name: str, n_steps: int
) -> float:
    """Train with one policy, and return the test accuracy."""
    data = make_data(seed, noise, n_trusted)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = make_model()
    optimizer = OPTIMIZERS[optimizer_name](model)
    chooser = Chooser(name, model, optimizer, 1 - NOISES[noise])
    for _ in range(n_steps):
        trusted = torch.randint(n_trusted, (TRUSTED_BATCH,), generator=generator)
        pool = torch.randint(N_POOL, (POOL_BATCH,), generator=generator)
        images = torch.cat([data.trusted[0][trusted], data.pool[0][pool]])
        labels = torch.cat([data.trusted[1][trusted], data.pool[1][pool]])
        losses, kept = chooser.losses_and_kept(images, labels, data.is_right[pool])
        optimizer.zero_grad()
        torch.cat([losses[:TRUSTED_BATCH], losses[TRUSTED_BATCH:][kept]]).mean().backward()
        optimizer.step()
        chooser.policy.step()
    with torch.no_grad():
        return float((model(data.test[0]).argmax(dim=1) == data.test[1]).double().mean())


def finished(path: Path, n_steps: int) -> dict[tuple[Any, ...], float]:
    """Read the runs that are done; those of another commit or length do not count."""
    state = [provenance(())["commit"], n_steps]
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if not lines or json.loads(lines[0]) != state:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(state) + "\n", encoding="utf-8")
        return {}
    return {tuple(key): value for key, value in map(json.loads, lines[1:])}


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the Markdown tables, made from the result alone."""
    made = {}
    for optimizer in OPTIMIZERS:
        settings = [f"{noise}_trusted{n}_{optimizer}" for noise, n in product(NOISES, N_TRUSTED)]
        titles = [
            f"{noise.rstrip('0123456789')} {share:.0%}, {n} trusted"
            for (noise, share), n in product(NOISES.items(), N_TRUSTED)
        ]
        lines = ["| trained on | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
        for policy in POLICIES:
            means = [result["headline"][f"accuracy_{policy}_{setting}"] for setting in settings]
            stds = [result["headline"][f"accuracy_{policy}_{setting}_std"] for setting in settings]
            cells = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(means, stds, strict=True)]
            lines.append(f"| `{policy}` | {' | '.join(cells)} |")
        made[optimizer] = "\n".join(lines)
    return made


def main() -> None:
    """Run all seeds of all settings and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps, writes nothing")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--steps", type=int, default=300, help="training steps of a run")
    parser.add_argument(
        "--progress", type=Path, default=ROOT / "runs" / "score_noisy_labels.jsonl",
        help="file of finished runs",
    )  # fmt: skip
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n_seeds, n_steps = (2, 120) if arguments.quick else (arguments.seeds, arguments.steps)
    done: dict[tuple[Any, ...], float] = {}
    if not arguments.quick:
        tests = "packages/bsgal-score/tests"
        require_tests(f"{tests}/test_small_loss.py", f"{tests}/test_class_rows.py")
        done = finished(arguments.progress, n_steps)
    rows = []
    for seed, noise, n_trusted, optimizer in product(range(n_seeds), NOISES, N_TRUSTED, OPTIMIZERS):
        setting = f"{noise}_trusted{n_trusted}_{optimizer}"
        row: dict[str, Any] = {"seed": seed, "setting": setting}
        for policy in POLICIES:
            key = (seed, setting, policy)
            if key not in done:
                done[key] = run(seed, noise, n_trusted, optimizer, policy, n_steps)
                if not arguments.quick:
                    with arguments.progress.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([key, done[key]]) + "\n")
            row[f"accuracy_{policy}"] = round(done[key], 5)
        rows.append(row)
        print(row, flush=True)
    headline: dict[str, float] = {"n_seeds": n_seeds, "n_steps": n_steps}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        for policy in POLICIES:
            values = [row[f"accuracy_{policy}"] for row in rows if row["setting"] == setting]
            key = f"accuracy_{policy}_{setting}"
            headline[key] = round(statistics.mean(values), 5)
            headline[f"{key}_std"] = round(statistics.stdev(values), 5)
    if arguments.quick:
        print(json.dumps(headline, indent=1))
        return
    write_result(
        "score_noisy_labels", rows=rows, headline=headline,
        libraries=("torch", "numpy", "scikit-learn"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
