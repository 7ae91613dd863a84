"""The runs of a study: trained and evaluated once, then read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_study.arms import ARMS, BASE, WALL, WALL_ARMS, Variant
from train_study.costs import measure_costs, steps_in_time
from train_study.filters import clip_scores, copy_pool, read_rows, u2netp_scores, without_worst
from train_study.pools import StudyPool
from train_study.summary import METRICS
from train_study.verdicts import finally_bad, of_draws, of_instances, recall_where_few_are_lost

if TYPE_CHECKING:
    from bsgal_train.recipe import Recipe

__all__ = ["Study"]


class Study:
    """The runs of all arms and seeds on one pool.

    Args:
        state: folder of all that is made; what is there is not made again.
        pool: what is pasted.
        start: folder of the detector that every arm starts from; its name is part of the runs'.
        n_steps: of a run.
        batch_size: images per step.
        clip: CLIP's weights for the arm that needs them.
    """

    def __init__(
        self, state: Path, pool: StudyPool, start: Path, *, n_steps: int, batch_size: int, clip: str
    ) -> None:
        self.pool = pool
        self._state = state
        self._folder = state / "runs" / f"{pool.name}-{start.name}"
        self._start = start
        self._n_steps = n_steps
        self._batch_size = batch_size
        self._clip = clip

    def steps_at_equal_time(self) -> dict[str, int]:
        """Return the steps of each arm that costs another time than `paste_all` for its steps."""
        costs = self.costs()
        steps = {arm: steps_in_time(costs[arm], self._n_steps) for arm in WALL_ARMS}
        return {arm: n for arm, n in steps.items() if n != self._n_steps}

    def costs(self) -> dict[str, dict[str, float]]:
        """Return what the arms cost that are repeated in the time of `paste_all`."""
        recipes = {arm: self._recipe(arm, 0, self._n_steps) for arm in (BASE, *WALL_ARMS)}
        self._folder.mkdir(parents=True, exist_ok=True)
        return measure_costs(recipes, self._folder / "costs.json")

    def run(self, arm: str, seed: int) -> None:
        """Train and evaluate one arm, unless that is done."""
        from bsgal_train.engine.run import train

        outcome = self._path(arm, seed) / "outcome.json"
        if outcome.is_file():
            return
        mode = arm.removesuffix(WALL)
        steps = self._n_steps if arm == mode else self.steps_at_equal_time()[mode]
        begun = time.monotonic()
        result = train(self._recipe(mode, seed, steps), self._path(arm, seed))
        assert result.evaluation is not None, "the built-in set has validation images"
        metrics = result.evaluation.metrics["segm"]
        found = {
            "steps": steps,
            "batch_size": self._batch_size,
            "seconds": round(time.monotonic() - begun, 1),
            **{name: none_to_nan(getattr(metrics, name)) for name in METRICS},
        }
        temporary = outcome.with_suffix(".tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(outcome)
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
        print({"pool": self.pool.name, "arm": arm, "seed": seed, **shown}, flush=True)

    def found(self, arm: str, seed: int) -> dict[str, Any]:
        """Return what came of a finished run: AP, and what its verdicts found of the defects.

        Raises:
            SystemExit: if it was run with another number of steps or images.
        """
        path = self._path(arm, seed) / "outcome.json"
        outcome = json.loads(path.read_text(encoding="utf-8"))
        asked = {"batch_size": self._batch_size}
        if not arm.endswith(WALL):
            asked["steps"] = self._n_steps
        if any(outcome[name] != value for name, value in asked.items()):
            raise SystemExit(
                f"{path} is of {outcome['steps']} steps of {outcome['batch_size']} images, not of "
                f"{self._n_steps} of {self._batch_size}: take another --state"
            )
        row = {name: outcome[name] for name in ("steps", "seconds", *METRICS)}
        return {"pool": self.pool.name, "arm": arm, "seed": seed, **row, **self.verdicts(arm, seed)}

    def verdicts(self, arm: str, seed: int) -> dict[str, float]:
        """Return the accepted share, and how well rejection finds the defects; or nothing."""
        from bsgal_train.inspect.run_evidence import run_evidence
        from bsgal_train.run_folder.decision_log import read_decisions

        variant = ARMS[arm.removesuffix(WALL)].pool
        if variant != "planted":
            left = {row["instance_id"] for row in read_rows(self._pool_of(variant))}
            return of_instances(self.pool.groups.keys() - left, self.pool)
        log = read_decisions(self._path(arm, seed) / "decisions").to_pylist()
        by_draw = of_draws(log, self.pool)
        if not by_draw:
            return {}
        if ARMS[arm.removesuffix(WALL)].steers:
            # What is not drawn any more is not in the log.
            table = run_evidence(self._path(arm, seed))
            verdicts = zip(table.ids, table.verdicts.tolist(), strict=True)
            bad = {one for one, verdict in verdicts if verdict == "reject"}
            p_values = dict(zip(table.ids, table.p_values.tolist(), strict=True))
            by_draw["instance_recall_at_3"] = recall_where_few_are_lost(p_values, self.pool)
        else:
            bad = finally_bad(log)
        return by_draw | of_instances(bad, self.pool)

    def _recipe(self, mode: str, seed: int, n_steps: int) -> Recipe:
        from bsgal_train.recipe.library import load_recipe

        arm = ARMS[mode]
        planted = self.pool.folder / "planted.json"
        changes = [
            f"data.builtin_root={self._state / 'dataset'}",
            f"detector.init={self._start}",
            # The rate of the detector's own training: there is much to learn again.
            "optimizer.lr=1e-3",
            f"paste.pool={self._pool_of(arm.pool)}",
            f"schedule.n_steps={n_steps}",
            f"schedule.batch_size={self._batch_size}",
            f"schedule.seed={seed}",
            "schedule.log_every=1",
            *(change.format(planted=planted) for change in arm.settings),
        ]
        if arm.screen:
            changes.append(f"selection.evidence={self._screening(mode, seed, changes)}")
        if arm.share_of:
            kept = self.verdicts(arm.share_of, seed)["accepted"]
            changes.append(f"selection.kept_share={kept}")
        return load_recipe("builtin_continue").override(*changes)

    def _screening(self, mode: str, seed: int, changes: Sequence[str]) -> Path:
        """Look at the pool before an arm's first step, unless that is done; return the table."""
        from bsgal_train.engine.screen import screen
        from bsgal_train.recipe.library import load_recipe

        table = self._folder / f"{mode}-{seed}-screening.parquet"
        if not table.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            begun = time.monotonic()
            recipe = load_recipe("builtin_continue").override(*changes)
            screen(recipe, table, n_looks=ARMS[mode].screen)
            print(
                {"screened": table.name, "seconds": round(time.monotonic() - begun, 1)}, flush=True
            )
        return table

    def _pool_of(self, variant: Variant) -> Path:
        pool = self.pool
        if variant == "planted":
            return pool.folder
        folder = self._state / "pools" / f"{pool.name}-{variant}"
        if variant == "clean":
            return copy_pool(
                pool.folder, folder, lambda row: row["instance_id"] not in pool.planted
            )
        scores = u2netp_scores if variant == "u2netp" else clip_scores(self._clip)
        return without_worst(pool.folder, folder, scores, len(pool.planted) / len(pool.groups))

    def _path(self, arm: str, seed: int) -> Path:
        mode = arm.removesuffix(WALL)
        # Equal arms under several names are run once.
        first = next(name for name, one in ARMS.items() if one == ARMS[mode])
        return self._folder / f"{first}{arm.removeprefix(mode)}-{seed}"


def none_to_nan(value: float | None) -> float:
    """Return a number; NaN for a metric that has no category."""
    return math.nan if value is None else float(value)
