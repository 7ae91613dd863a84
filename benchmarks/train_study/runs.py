"""The runs of a study: trained and evaluated once, then read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_study.arms import ARMS, BASE, WALL, WALL_ARMS
from train_study.costs import measure_costs, steps_in_time
from train_study.pools import PoolKind, copy_pool, filter_pool, make_pool
from train_study.start import forget_rare
from train_study.summary import METRICS, ranked_below, share

if TYPE_CHECKING:
    from bsgal_train.recipe import Recipe


class Study:
    """The runs of all arms and seeds in one folder.

    Args:
        folder: of data, pools and runs; what is there is not made again.
        pool: what the instances are before a part of them is spoilt.
        per_category: instances.
        n_steps: of a run.
        batch_size: images per step.
    """

    def __init__(
        self, folder: Path, pool: PoolKind, per_category: int, n_steps: int, batch_size: int
    ) -> None:
        from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset

        check_settings(folder, {"pool": pool, "per_category": per_category})
        self._folder = folder
        self._n_steps = n_steps
        self._batch_size = batch_size
        ensure_builtin_dataset(folder / "dataset")
        self._start = forget_rare(folder)
        self._pool = make_pool(folder, pool, per_category)
        self._planted = json.loads((self._pool / "planted.json").read_text(encoding="utf-8"))

    def steps_at_equal_time(self) -> dict[str, int]:
        """Return the steps of each arm that costs another time than `paste_all` for its steps."""
        costs = self.costs()
        steps = {arm: steps_in_time(costs[arm], self._n_steps) for arm in WALL_ARMS}
        return {arm: n for arm, n in steps.items() if n != self._n_steps}

    def costs(self) -> dict[str, dict[str, float]]:
        """Return what the arms cost that are repeated in the time of `paste_all`."""
        recipes = {arm: self._recipe(arm, 0, self._n_steps) for arm in (BASE, *WALL_ARMS)}
        return measure_costs(recipes, self._folder / "costs.json")

    def run(self, arm: str, seed: int) -> None:
        """Train and evaluate one arm, unless that is done."""
        from bsgal_train.engine.run import train

        outcome = self._path(arm, seed) / "outcome.json"
        if outcome.is_file():
            return
        mode = arm.removesuffix(WALL)
        steps = self._n_steps if arm == mode else self.steps_at_equal_time()[mode]
        result = train(self._recipe(mode, seed, steps), self._path(arm, seed))
        assert result.evaluation is not None, "the built-in set has validation images"
        metrics = result.evaluation.metrics["segm"]
        found = {
            "arm": arm,
            "seed": seed,
            "steps": steps,
            **{name: none_to_nan(getattr(metrics, name)) for name in METRICS},
        }
        temporary = outcome.with_suffix(".tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(outcome)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}, flush=True)

    def found(self, arm: str, seed: int) -> dict[str, Any]:
        """Return what came of a finished run: AP, and what its verdicts found of the defects."""
        text = (self._path(arm, seed) / "outcome.json").read_text(encoding="utf-8")
        outcome = {name: json.loads(text)[name] for name in ("arm", "seed", "steps", *METRICS)}
        return outcome | self._verdicts(arm, seed)

    def _recipe(self, mode: str, seed: int, n_steps: int) -> Recipe:
        from bsgal_train.recipe.library import load_recipe

        changes = [
            f"data.builtin_root={self._folder / 'dataset'}",
            f"detector.init={self._start}",
            # The rate of the detector's own training: there is much to learn again.
            "optimizer.lr=1e-3",
            f"paste.pool={self._pool_of(mode)}",
            f"schedule.n_steps={n_steps}",
            f"schedule.batch_size={self._batch_size}",
            f"schedule.seed={seed}",
            "schedule.log_every=1",
            *ARMS[mode],
        ]
        if mode == "paste_random":
            changes.append(f"selection.kept_share={self._verdicts('instance', seed)['accepted']}")
        return load_recipe("builtin_continue").override(*changes)

    def _pool_of(self, mode: str) -> Path:
        if mode == "paste_filtered":
            return filter_pool(self._pool, self._folder / f"{self._pool.name}-filtered")
        if mode == "paste_clean":
            clean = self._folder / f"{self._pool.name}-clean"
            return copy_pool(
                self._pool, clean, lambda entry: entry["instance_id"] not in self._planted
            )
        return self._pool

    def _verdicts(self, arm: str, seed: int) -> dict[str, float]:
        """Return the accepted share of instances, and how well rejection finds the defects."""
        from bsgal_train.run_folder.decision_log import read_decisions

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
        for group in ("r", "c", "f"):
            own = (row for row in log if row["frequency"] == group and row["defect"] is None)
            found[f"accepted_good_{group}"] = share(row["verdict"] == "accept" for row in own)
        return found

    def _path(self, arm: str, seed: int) -> Path:
        return self._folder / f"{arm}-{seed}"


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Stop if the folder holds runs with other instances; note what its instances are.

    Settings of training are checked by each run itself.
    """
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        path.write_text(json.dumps(settings), encoding="utf-8")
    elif (found := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise SystemExit(f"{folder} holds runs with {found}, not {settings}: take an empty folder")


def arms_in_order(arms: Sequence[str]) -> list[str]:
    """Return arms such that `instance` comes before `paste_random`, which keeps its share."""
    return sorted(arms, key=lambda arm: arm == "paste_random")


def none_to_nan(value: float | None) -> float:
    """Return a number; NaN for a metric that has no category."""
    return math.nan if value is None else float(value)
