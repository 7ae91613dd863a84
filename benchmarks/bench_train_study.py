"""Compare the selection modes on long-tailed data with a pool that holds planted defects.

Every arm trains the shipped detector on the built-in set, after its classifier has forgotten the
rare categories: what it learns of them, it learns from one to three real images of each and from
the pool. Steps, batches and pasted instances are the same per seed; only what is trained on of them
differs. Of the pool a known part is
spoilt: of another category, with a broken mask, or noise instead of the object. So beside mask AP
there is how well an arm finds the defects.

The arm `paste_clean` pastes the pool without its spoilt instances: what perfect judgement of the
defects would be worth. The arm `paste_random` accepts the share that `instance` accepted with the
same seed. The arm `paste_filtered` pastes everything of a pool from which the instances were
dropped that a salient-object model agrees with least, as many as are spoilt. Where a mode costs
more time per step than `paste_all`, the arm `<arm>@wall` repeats it with as many steps fewer as fit
the time that `paste_all` takes.

Each (arm, seed) is a folder in `--state`; a finished one is not run again, and a killed one goes on
from its checkpoint. So several processes may share the work, each with seeds of its own, before one
with all seeds writes the result.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _harness import require_tests, write_result

IN_BATCH = ["selection.mode=instance", "selection.reference=in_batch", "selection.policy=fixed"]
HYBRID = ["selection.mode=instance", "selection.reference=hybrid", "selection.policy=fixed"]
STEP = ["selection.form=step"]
ROWWISE = ["selection.rowwise=true"]
ZERO = ["selection.threshold=0"]
# Arm: overrides of the recipe `builtin_continue`, apart from pool and seed.
ARMS: dict[str, list[str]] = {
    "none": ["selection.mode=none"],
    "paste_all": ["selection.mode=paste_all"],
    "paste_clean": ["selection.mode=paste_all"],
    "paste_filtered": ["selection.mode=paste_all"],
    "paper": ["selection.mode=paper"],
    "batch": ["selection.mode=batch"],
    "instance": [
        "selection.mode=instance",
        "selection.reference=own_class",
        "selection.policy=like_real",
    ],
    "in_batch": [*IN_BATCH, *ZERO],
    "in_batch_rowwise": [*IN_BATCH, *ZERO, *ROWWISE],
    "in_batch_step": [*IN_BATCH, *ZERO, *STEP],
    "in_batch_step_rowwise": [*IN_BATCH, *ZERO, *STEP, *ROWWISE],
    "hybrid": [*HYBRID, *ZERO],
    "hybrid_rowwise": [*HYBRID, *ZERO, *ROWWISE],
    "hybrid_step": [*HYBRID, *ZERO, *STEP],
    "hybrid_step_rowwise": [*HYBRID, *ZERO, *STEP, *ROWWISE],
    "paste_random": ["selection.mode=paste_random"],
}
METRICS = ("ap", "apr", "apc", "apf")
DEFECT_SHARE = 0.15
"""Share of the pool that each of the three kinds of defect hits."""
WALL = "@wall"
WALL_ARMS = ("paper", "batch")


def main() -> None:
    """Run what is missing, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--quick", action="store_true", help="three arms, two seeds, two steps")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds (default 0 to 4)"
    )
    parser.add_argument("--steps", type=int, default=120, help="steps of a run (default 120)")
    parser.add_argument("--batch-size", type=int, default=8, help="images per step (default 8)")
    parser.add_argument("--per-category", type=int, default=30, help="instances (default 30)")
    parser.add_argument(
        "--pool", choices=("drawn", "generated"), default="drawn",
        help="what is spoilt: the built-in drawings in random appearances, or instances generated "
        "by the built-in pipeline, with its natural defects (default drawn)",
    )  # fmt: skip
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--wall", action=argparse.BooleanOptionalAction, default=True,
        help="repeat dearer arms in the time of paste_all (default yes)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.arms = ["none", "instance", "paste_random"]
        arguments.seeds, arguments.steps, arguments.batch_size = [0, 1], 2, 2
        arguments.per_category = 2
    else:
        require_tests("packages/bsgal-train/tests/selection")
    study = Study(arguments)
    arms = [arm for arm in arguments.arms if arm != "paste_random"]
    for seed in arguments.seeds:
        for arm in arms:
            study.run(arm, seed)
        if "paste_random" in arguments.arms:
            study.run("paste_random", seed)
        if arguments.wall and "paste_all" in arms:
            for arm in (one for one in WALL_ARMS if one in arms):
                study.run(arm + WALL, seed)
    rows = study.rows()
    headline = headline_of(rows)
    if arguments.quick:
        print(json.dumps({"headline": headline, "rows": rows}, indent=1))
        return
    write_result(
        "train_study",
        rows=rows,
        headline=headline,
        libraries=("torch", "torchvision", "bsgal-train", "bsgal-score"),
    )


class Study:
    """The runs of all arms and seeds in one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from bsgal_train.builtin.dataset import ensure_builtin_dataset

        torch.set_num_threads(arguments.threads)
        self._options = arguments
        self._folder: Path = arguments.state
        self._done: list[tuple[str, int]] = []
        ensure_builtin_dataset(self._folder / "dataset")
        self._start = forget_rare(self._folder)
        self._pool = make_pool(self._folder, arguments.pool, arguments.per_category)
        self._filtered = filter_pool(self._pool, self._folder / f"{self._pool.name}-filtered")
        self._planted = json.loads((self._pool / "planted.json").read_text(encoding="utf-8"))
        self._clean = copy_pool(
            self._pool,
            self._folder / f"{self._pool.name}-clean",
            lambda entry: entry["instance_id"] not in self._planted,
        )

    def run(self, arm: str, seed: int) -> None:
        """Train and evaluate one arm, unless that is done."""
        from bsgal_train.recipes import load_recipe
        from bsgal_train.run import train

        self._done.append((arm, seed))
        outcome = self._path(arm, seed) / "outcome.json"
        if outcome.is_file():
            return
        mode = arm.removesuffix(WALL)
        pools = {"paste_clean": self._clean, "paste_filtered": self._filtered}
        pool = pools.get(mode, self._pool)
        steps = self._options.steps
        if arm.endswith(WALL):
            ratio = self._outcome(mode, seed)["step_s"] / self._outcome("paste_all", seed)["step_s"]
            steps = max(1, round(steps / ratio))
        changes = [
            f"data.builtin_root={self._folder / 'dataset'}",
            f"detector.init={self._start}",
            # The rate of the detector's own training: there is much to learn again.
            "optimizer.lr=1e-3",
            f"paste.pool={pool}",
            f"schedule.n_steps={steps}",
            f"schedule.batch_size={self._options.batch_size}",
            f"schedule.seed={seed}",
            "schedule.log_every=1",
            *ARMS[mode],
        ]
        if mode == "paste_random" and "instance" in self._options.arms:
            changes.append(f"selection.kept_share={self._verdicts('instance', seed)['accepted']}")
        recipe = load_recipe("builtin_continue").override(*changes)
        result = train(recipe, self._path(arm, seed))
        assert result.evaluation is not None, "the built-in set has validation images"
        metrics = result.evaluation.metrics["segm"]
        found = {
            "arm": arm,
            "seed": seed,
            "steps": steps,
            "step_s": result.step_s,
            **{name: none_to_nan(getattr(metrics, name)) for name in METRICS},
        }
        outcome.write_text(json.dumps(found), encoding="utf-8")
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}, flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per run, then one per arm with means, spread and paired tests."""
        runs = [self._outcome(arm, seed) | self._verdicts(arm, seed) for arm, seed in self._done]
        return [*runs, *summaries(runs)]

    def _verdicts(self, arm: str, seed: int) -> dict[str, float]:
        """Return the accepted share of instances, and how well rejection finds the defects."""
        from bsgal_train.decision_log import read_decisions

        log = [
            {**row, "defect": self._planted.get(row["instance_id"])}
            for row in read_decisions(self._path(arm, seed) / "decisions").to_pylist()
            if row["verdict"] in ("accept", "reject", "nonfinite")
        ]
        if not log:
            return {}
        judged = [(row["verdict"] != "accept", row["defect"]) for row in log]
        rejected = [defect for is_rejected, defect in judged if is_rejected]
        spoilt = [is_rejected for is_rejected, defect in judged if defect is not None]
        found = {
            "accepted": 1 - len(rejected) / len(judged),
            "defect_precision": share(defect is not None for defect in rejected),
            "defect_recall": share(spoilt),
            "rejected_of_good": share(is_rejected for is_rejected, d in judged if d is None),
            "defect_auc": ranked_below(log),
        }
        for kind in sorted(set(self._planted.values())):
            found[f"recall_{kind}"] = share(is_rejected for is_rejected, d in judged if d == kind)
        return found

    def _outcome(self, arm: str, seed: int) -> dict[str, Any]:
        text = (self._path(arm, seed) / "outcome.json").read_text(encoding="utf-8")
        outcome: dict[str, Any] = json.loads(text)
        return outcome

    def _path(self, arm: str, seed: int) -> Path:
        return self._folder / f"{arm}-{seed}"


def forget_rare(folder: Path) -> Path:
    """Store the shipped detector with fresh classifier rows for the rare categories."""
    import torch

    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.detector import build_detector, load_weights, save_detector
    from bsgal_train.recipes import load_recipe

    dataset, start = folder / "dataset", folder / "start"
    if start.is_dir():
        return start
    annotations = LvisAnnotations.load(dataset / "annotations/lvis_train.json", dataset / "images")
    names = [category.name for category in annotations.categories]
    config = load_recipe("builtin_continue").detector
    torch.manual_seed(0)
    fresh: Any = build_detector(config, len(names))
    detector: Any = build_detector(config, len(names))
    load_weights(detector, "baseline", names)
    rare = torch.tensor([category.frequency == "r" for category in annotations.categories])
    with torch.no_grad():
        for name in ("weight", "bias"):
            rows, its_fresh = (
                getattr(one.roi_heads.box_predictor.cls_score, name) for one in (detector, fresh)
            )
            rows[rare] = its_fresh[rare]
    partial = folder / "start.partial"
    save_detector(partial, detector, config, names)
    partial.rename(start)
    return start


def make_pool(folder: Path, kind: str, per_category: int) -> Path:
    """Make the spoilt pool, or find it."""
    from sprite_pool import plant_defects, write_sprite_pool

    if kind == "drawn":
        clean = write_sprite_pool(folder / "drawn", per_category)
    else:
        clean = generate_pool(folder, per_category)
    return plant_defects(clean, folder / f"{kind}-planted", DEFECT_SHARE)


def generate_pool(folder: Path, per_category: int) -> Path:
    """Generate and cut out instances with what ships with the packages."""
    from bsgal_generate import (
        TEMPLATES,
        GenerationPlan,
        SamplingConfig,
        generate,
        load_categories,
        load_pipeline,
    )
    from bsgal_mask import BorderSegmenter, build_pool

    pool = folder / "generated"
    if not (pool / "meta.json").is_file():
        plan = GenerationPlan(
            categories=tuple(load_categories(folder / "dataset/annotations/lvis_train.json")),
            images_per_category=per_category,
            templates=(TEMPLATES["single_noun"],),
            seed=0,
        )
        config = SamplingConfig(num_inference_steps=15)
        generate(plan, load_pipeline("tiny"), folder / "images", config=config)
        build_pool(folder / "images", pool, methods=(BorderSegmenter(),))
    return pool


def filter_pool(pool: Path, folder: Path) -> Path:
    """Copy a pool without the instances whose mask a salient-object model agrees with least.

    Each instance is shown to the model on white; what counts is the overlap of its mask with the
    pool's. As many are dropped as are spoilt.
    """
    import cv2
    import numpy as np

    from bsgal_mask import U2NetSegmenter

    if (folder / "meta.json").is_file():
        return folder
    text = (pool / "manifest.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()]
    segmenter = U2NetSegmenter()
    overlaps = []
    for entry in entries:
        rgba = cv2.cvtColor(
            cv2.imread(str(pool / entry["file"]), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA
        )
        margin = max(rgba.shape[:2]) // 4
        rgba = np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))
        alpha = rgba[..., 3:].astype(np.float32) / 255
        image = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        (soft,) = segmenter.segment([image], [entry["category_name"]])
        found, own = np.asarray(soft) >= 0.5, alpha[..., 0] >= 0.5
        overlaps.append((found & own).sum() / max((found | own).sum(), 1))
    planted = json.loads((pool / "planted.json").read_text(encoding="utf-8"))
    dropped = np.argsort(overlaps)[: len(planted)]
    unlike = {entries[k]["instance_id"] for k in dropped}
    return copy_pool(pool, folder, lambda entry: entry["instance_id"] not in unlike)


def copy_pool(pool: Path, folder: Path, keep: Callable[[dict[str, Any]], bool]) -> Path:
    """Copy the instances of a pool that `keep` is true of; or find the copy there."""
    if (folder / "meta.json").is_file():
        return folder
    kept = []
    for line in (pool / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if keep(entry):
            kept.append(line + "\n")
            (folder / entry["file"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pool / entry["file"], folder / entry["file"])
    (folder / "manifest.jsonl").write_text("".join(kept), encoding="utf-8")
    shutil.copyfile(pool / "meta.json", folder / "meta.json")
    return folder


def summaries(runs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per arm: mean and spread over seeds, and paired tests of APr."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    by_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in arms}
    for arm, own in by_arm.items():
        row: dict[str, Any] = {"arm": arm, "seed": "all", "n_seeds": len(own)}
        names = [name for name in own[0] if name not in ("arm", "seed")]
        for name in names:
            values = [run[name] for run in own if not math.isnan(run.get(name, math.nan))]
            if values:
                row[name] = statistics.mean(values)
                row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        for other in ("none", "paste_all", "paste_random"):
            if other in by_arm and other != arm and len(own) > 1:
                difference, p = paired(own, by_arm[other], "apr")
                row[f"apr_minus_{other}"] = difference
                row[f"apr_p_{other}"] = p
        yield row


def paired(
    own: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], name: str
) -> tuple[float, float]:
    """Return the mean difference over the seeds of both arms, and its paired t-test's p."""
    from scipy.stats import ttest_rel

    by_seed = {run["seed"]: run[name] for run in other}
    pairs = [(run[name], by_seed[run["seed"]]) for run in own if run["seed"] in by_seed]
    differences = [a - b for a, b in pairs]
    if len(set(differences)) == 1:
        # The test divides by their spread.
        return differences[0], 1.0 if differences[0] == 0 else 0.0
    a, b = zip(*pairs, strict=True)
    return statistics.mean(differences), float(ttest_rel(a, b).pvalue)


def headline_of(rows: Sequence[dict[str, Any]]) -> dict[str, float | int | str]:
    """Return the headline numbers, AP in per cent."""
    headline: dict[str, float | int | str] = {}
    for row in rows:
        if row["seed"] != "all":
            continue
        arm = row["arm"]
        for name in METRICS:
            if name in row:
                headline[f"{name}_{arm}"] = round(100 * row[name], 2)
                headline[f"{name}_{arm}_std"] = round(100 * row[f"{name}_std"], 2)
        for name in ("defect_auc", "defect_precision", "defect_recall", "accepted"):
            if name in row:
                headline[f"{name}_{arm}"] = round(row[name], 3)
    return headline


def ranked_below(log: Sequence[dict[str, Any]]) -> float:
    """Return the share of pairs in which a spoilt instance scores below a good one; ties half."""
    from scipy.stats import mannwhitneyu

    scored = [row for row in log if row["contribution"] is not None]
    good, spoilt = (
        [row["contribution"] for row in scored if (row["defect"] is None) is is_good]
        for is_good in (True, False)
    )
    if not good or not spoilt:
        return math.nan
    return float(mannwhitneyu(good, spoilt).statistic) / (len(good) * len(spoilt))


def share(values: Any) -> float:
    """Return the share of true values; NaN of none."""
    listed = [bool(value) for value in values]
    return sum(listed) / len(listed) if listed else math.nan


def none_to_nan(value: float | None) -> float:
    """Return a number; NaN for a metric that has no category."""
    return math.nan if value is None else float(value)


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the README tables: AP of the arms, and what they found of the defects."""
    arms = [row for row in result["rows"] if row["seed"] == "all"]

    def ap(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.1f} ± {100 * row[f'{name}_std']:.1f}" if name in row else "-"

    def part(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.0f} %" if name in row else "-"

    quality = [
        "| arm | steps | AP | APr | APc | APf | APr against `paste_all` (p) |",
        "|---|---|---|---|---|---|---|",
    ]
    defects = [
        "| arm | defect scores below good | accepted | defects among rejected | defects rejected | "
        "wrong category | broken mask | noise | good rejected |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in arms:
        test = "-"
        if "apr_minus_paste_all" in row:
            test = f"{100 * row['apr_minus_paste_all']:+.1f} ({row['apr_p_paste_all']:.2f})"
        cells = [ap(row, name) for name in METRICS]
        quality.append(
            f"| {row['arm']} | {row['steps']:.0f} | " + " | ".join([*cells, test]) + " |"
        )
        if "accepted" in row:
            names = (
                "defect_auc", "accepted", "defect_precision", "defect_recall",
                "recall_wrong_category", "recall_broken_mask", "recall_noise", "rejected_of_good",
            )  # fmt: skip
            found = " | ".join(part(row, name) for name in names)
            defects.append(f"| {row['arm']} | {found} |")
    return {"ap": "\n".join(quality) + "\n", "defects": "\n".join(defects) + "\n"}


if __name__ == "__main__":
    main()
