"""What an arm costs, measured in turn with the others."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from train_study.arms import BASE

if TYPE_CHECKING:
    from bsgal_train.recipe import Recipe

ROUNDS = 5
STEPS_PER_ROUND = 16
"""As many as from one refresh of a reference to the next."""


def measure_costs(recipes: Mapping[str, Recipe], path: Path) -> dict[str, dict[str, float]]:
    """Return what each arm's step costs in steps of `paste_all`; or find it in a file.

    `step` is the median over rounds, in which all arms take as many steps one after the other, of
    the ratio within the round; `start` is what the first step takes beyond that of `paste_all`,
    such as looking at real images of every class.
    """
    if path.is_file():
        found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
        return found
    takers = {arm: step_taker(recipe) for arm, recipe in recipes.items()}
    first = {arm: seconds(take, 1) for arm, take in takers.items()}
    for take in takers.values():
        # Adam has its moments and every cache a gradient.
        take()
    rounds = []
    for number in range(ROUNDS):
        names = list(takers)
        turned = names[number % len(names) :] + names[: number % len(names)]
        rounds.append({arm: seconds(takers[arm], STEPS_PER_ROUND) for arm in turned})
        print({arm: round(s / STEPS_PER_ROUND, 3) for arm, s in rounds[-1].items()}, flush=True)
    base_s = statistics.median(one[BASE] for one in rounds) / STEPS_PER_ROUND
    costs = {
        arm: {
            "step": statistics.median(one[arm] / one[BASE] for one in rounds),
            "start": max(0.0, (first[arm] - first[BASE]) / base_s),
        }
        for arm in recipes
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(costs, indent=1), encoding="utf-8")
    temporary.replace(path)
    return costs


def steps_in_time(cost: Mapping[str, float], n_steps: int) -> int:
    """Return how many steps of an arm take as long as `n_steps` of `paste_all`, at least one."""
    return max(1, round((n_steps - cost["start"]) / cost["step"]))


def step_taker(recipe: Recipe) -> Callable[[], object]:
    """Return a function that takes the run's next step, with its loading."""
    from bsgal_train.annotations.paths import DataPaths
    from bsgal_train.engine.assembly import assemble

    assembly = assemble(recipe, DataPaths.of(recipe.data).load_training())
    batches = iter(assembly.batches(0))
    return lambda: assembly.steps.take(next(batches))


def seconds(take: Callable[[], object], n: int) -> float:
    """Return how long n steps take."""
    start = time.perf_counter()
    for _ in range(n):
        take()
    return time.perf_counter() - start
