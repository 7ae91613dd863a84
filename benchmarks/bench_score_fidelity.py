"""Rank correlation of every score with the exact change of the reference loss.

Two models on real images: a small convolutional classifier of scikit-learn's digits, with clean,
noisy and mislabelled candidates; and a small Mask R-CNN on digits pasted into photographs, whose
candidates are one more pasted object each, clean, noise, mislabelled or with an inverted mask.
Both are trained for a while, with SGD and AdamW; then each candidate gets the exact drop of the
loss on held-out real data (`bsgal_score.loss_difference`), alone or in a batch against that batch
without it, and every estimate of it, at the learning rate of the training ("usual") and at a tenth
("small"). A row holds the Spearman correlation between the two over the candidates, by seed.

    python benchmarks/bench_score_fidelity.py --state DIR

writes `benchmarks/results/score_fidelity.json`. Finished cases are kept in DIR as JSON, so a run
that was stopped goes on there. `--quick` trains for a moment, with one seed, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

from _harness import require_tests, write_result

OPTIMIZERS = ("adamw", "sgd")
RATES = {"usual": 1.0, "small": 0.1}
N_CANDIDATES = {"detector": 20, "classifier": 48}
UNITS = {
    # (unit, alone, all estimators) at each rate
    "usual": (("image", False, True), ("instance", False, True), ("image", True, False),
              ("batch", True, False)),
    "small": (("image", False, False), ("instance", False, False)),
}  # fmt: skip
HEADLINE = (
    "dot", "cosine", "step", "step_look_ahead", "step_exact", "step_scalar", "step_diagonal",
    "step_kfac", "step_exact_kfac", "step_exact_look_ahead", "step_look_ahead_kfac",
    "step_exact_look_ahead_kfac", "step_extrapolated_fixed_batch", "head_dot", "head_cosine",
    "head_step", "head_step_look_ahead", "head_step_exact_kfac",
)  # fmt: skip
FORMS = (
    "dot", "cosine", "step", "step_scalar", "step_diagonal", "step_kfac", "step_look_ahead",
    "step_look_ahead_kfac", "step_exact", "step_exact_kfac", "step_exact_look_ahead",
    "step_exact_look_ahead_kfac",
)  # fmt: skip
CHEAPER = (
    "cosine", "step", "step_bf16", "head_dot", "head_cosine", "head_step", "head_step_look_ahead",
    "head_step_exact_kfac", "step_extrapolated_fixed_batch", "step_extrapolated_decay_0.9",
    *(f"{form}_{cache}" for cache in ("decay_0", "decay_0.1", "decay_0.9", "decay_0.99",
      "decay_0.9_rowwise") for form in ("cosine", "step")),
    *(f"step_sketch_{width}{side}" for width in (256, 1024, 4096, 16384)
      for side in ("", "_one_side")),
)  # fmt: skip


def spearman(estimates: list[float], true: list[float]) -> float:
    """Return the rank correlation; NaN if there is none, as for a constant."""
    from scipy.stats import spearmanr

    if min(len(set(estimates)), len(set(true))) < 2 or not all(map(math.isfinite, estimates)):
        return math.nan
    return float(spearmanr(estimates, true).statistic)


def run_case(model: str, optimizer: str, seed: int, *, quick: bool) -> list[dict[str, Any]]:
    """Train one model and compare all estimates with the truth; return rows of one seed."""
    from score_fidelity import digit_classifier, digit_detector
    from score_fidelity.estimators import estimates, true_effects

    make = {"classifier": digit_classifier, "detector": digit_detector}[model].make_setting
    n_candidates = 8 if quick else N_CANDIDATES[model]
    setting = make(optimizer, seed, n_candidates=n_candidates, quick=quick)
    print(f"  trained: {setting.quality}", flush=True)
    rows = []
    for rate, factor in RATES.items():
        before = [group["lr"] for group in setting.optimizer.param_groups]
        for group, lr in zip(setting.optimizer.param_groups, before, strict=True):
            group["lr"] = factor * lr
        for unit, alone, everything in UNITS[rate]:
            if unit not in setting.candidates:
                continue
            true = true_effects(setting, setting.candidates[unit], alone=alone)
            found = estimates(setting, unit, alone=alone, everything=everything)
            case = {"model": model, "optimizer": optimizer, "rate": rate, "unit": unit,
                    "compared": "alone" if alone else "in_batch"}  # fmt: skip
            rows += [
                {**case, "estimator": name, "seed": seed, "spearman": spearman(values, true),
                 "n_candidates": len(true), "quality": setting.quality}
                for name, values in found.items()
            ]  # fmt: skip
        for group, lr in zip(setting.optimizer.param_groups, before, strict=True):
            group["lr"] = lr
    return rows


def aggregate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the seeds of each case."""
    merged: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    keys = ("model", "optimizer", "rate", "unit", "compared", "estimator")
    for row in rows:
        merged[tuple(row[key] for key in keys)].append(row)
    found = []
    for case, ones in merged.items():
        values = [one["spearman"] for one in ones if math.isfinite(one["spearman"])]
        found.append(
            {
                **dict(zip(keys, case, strict=True)),
                "mean": statistics.fmean(values) if values else None,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "n_seeds": len(values),
                "by_seed": {one["seed"]: round(one["spearman"], 4) for one in ones}
                if len(values) == len(ones)
                else {one["seed"]: repr(one["spearman"]) for one in ones},
            }
        )
    return found


def headline(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the detector's numbers with AdamW at the usual rate."""
    found = {}
    prefixes = {("image", "in_batch"): "", ("instance", "in_batch"): "instance_",
                ("batch", "alone"): "batch_"}  # fmt: skip
    for row in rows:
        prefix = prefixes.get((row["unit"], row["compared"]))
        is_main = (row["model"], row["optimizer"], row["rate"]) == ("detector", "adamw", "usual")
        if is_main and prefix is not None and row["estimator"] in HEADLINE and row["n_seeds"] > 1:
            name = f"spearman_{prefix}{row['estimator']}"
            found[name], found[f"{name}_std"] = round(row["mean"], 4), round(row["std"], 4)
    return found


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables: mean and standard deviation over seeds."""
    cells = {
        (row["model"], row["optimizer"], row["rate"], row["unit"], row["compared"],
         row["estimator"]): row
        for row in result["rows"]
    }  # fmt: skip

    def table(estimators: tuple[str, ...], columns: dict[str, tuple[str, ...]]) -> str:
        lines = ["| estimator | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        for name in estimators:
            texts = []
            for case in columns.values():
                row = cells.get((*case, name))
                known = row is not None and row["n_seeds"] > 1
                texts.append(f"{row['mean']:.2f} ± {row['std']:.2f}" if row and known else "-")
            if any(text != "-" for text in texts):
                lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(texts) + " |")
        return "\n".join(lines)

    def case(model: str, optimizer: str, rate: str, unit: str, compared: str) -> tuple[str, ...]:
        return (model, optimizer, rate, unit, compared)

    detector = {
        f"{label}, {unit}": case("detector", optimizer, rate, unit, "in_batch")
        for label, optimizer, rate in (
            ("AdamW 1e-3", "adamw", "usual"), ("AdamW 1e-4", "adamw", "small"),
            ("SGD 2e-2", "sgd", "usual"), ("SGD 2e-3", "sgd", "small"),
        )
        for unit in ("image", "instance")
    }  # fmt: skip
    classifier = {
        "AdamW 1e-3": case("classifier", "adamw", "usual", "image", "in_batch"),
        "AdamW 1e-4": case("classifier", "adamw", "small", "image", "in_batch"),
        "SGD 0.1": case("classifier", "sgd", "usual", "image", "in_batch"),
        "SGD 0.01": case("classifier", "sgd", "small", "image", "in_batch"),
    }
    alone = {
        f"{model}, {label}, {unit}": case(model, optimizer, "usual", unit, "alone")
        for model in ("detector", "classifier")
        for label, optimizer in (("AdamW", "adamw"), ("SGD", "sgd"))
        for unit in ("image", "batch")
    }
    cheaper = {
        "detector, AdamW, image": case("detector", "adamw", "usual", "image", "in_batch"),
        "detector, AdamW, instance": case("detector", "adamw", "usual", "instance", "in_batch"),
        "detector, SGD, image": case("detector", "sgd", "usual", "image", "in_batch"),
        "classifier, AdamW": case("classifier", "adamw", "usual", "image", "in_batch"),
        "classifier, SGD": case("classifier", "sgd", "usual", "image", "in_batch"),
    }
    return {
        "detector": table(FORMS, detector),
        "classifier": table(FORMS, classifier),
        "alone": table(FORMS, alone),
        "cheaper": table(CHEAPER, cheaper),
    }


def main() -> None:
    """Run what is missing in the state folder and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, help="folder of finished cases")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", default=["detector", "classifier"])
    parser.add_argument("--quick", action="store_true", help="one seed, hardly trained, no result")
    parser.add_argument("--part", action="store_true", help="fill the state folder, no result")
    parser.add_argument("--collect", action="store_true", help="only merge what is finished")
    arguments = parser.parse_args()
    if not arguments.collect and not arguments.part:
        require_tests(
            "packages/bsgal-score/tests/test_step_model.py",
            "packages/bsgal-score/tests/test_step_options.py",
            "packages/bsgal-score/tests/test_loss_difference.py",
        )
    import torch

    torch.set_num_threads(1)
    seeds = [0] if arguments.quick else arguments.seeds
    state = arguments.state
    if state is None or arguments.quick:
        state = Path(tempfile.mkdtemp(prefix="score_fidelity_"))
    state.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed, model, optimizer in product(seeds, arguments.models, OPTIMIZERS):
        path = state / f"{model}_{optimizer}_{seed}.json"
        if not path.exists() and not arguments.collect:
            start = time.perf_counter()
            print(path.stem, flush=True)
            found = run_case(model, optimizer, seed, quick=arguments.quick)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(found))
            temporary.replace(path)
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        if path.exists():
            rows += json.loads(path.read_text())
    if arguments.part:
        return
    merged = aggregate(rows)
    if arguments.quick:
        for row in merged:
            if row["estimator"] in HEADLINE:
                print(*(row[key] for key in ("model", "optimizer", "rate", "unit", "compared",
                                             "estimator")), row["mean"])  # fmt: skip
        return
    write_result(
        "score_fidelity",
        rows=merged,
        headline=headline(merged),
        libraries=("torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image"),
    )


if __name__ == "__main__":
    main()
