"""End a run that no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

from bsgal_train.engine.hooks import FinishedStep, Hook

__all__ = ["StopOnPlateau"]

logger = logging.getLogger(__name__)


class StopOnPlateau(Hook):
    """End a run once a number has not become better for a while.

    Args:
        name: of the number, as in `metrics.jsonl`: `val/ap` (every `schedule.eval_every` steps),
            `loss`, or what another hook records. Steps without it do not count.
        goal: whether more (`max`) or less (`min`) of it is better.
        patience: how many values in a row may be no better than the best before them.
        min_change: what a better value has to be better by.
        window: of how many values in a row the mean is taken first, each value in one mean only;
            the loss of a single step says little.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        name: str,
        goal: Literal["max", "min"],
        *,
        patience: int,
        min_change: float = 0.0,
        window: int = 1,
    ) -> None:
        if goal not in ("max", "min"):
            raise ValueError(f"`goal` must be max or min, got {goal!r}")
        if patience < 1 or window < 1:
            raise ValueError(
                f"`patience` and `window` must be at least 1, got {patience} and {window}"
            )
        if not 0 <= min_change < math.inf:
            raise ValueError(f"`min_change` must be 0 or more, got {min_change}")
        self._name = name
        self._sign = 1 if goal == "max" else -1
        self._patience = patience
        self._min_change = min_change
        self._window = window
        self._values: list[float] = []
        self._best: float | None = None
        self._n_worse = 0

    def after_step(self, step: FinishedStep) -> None:
        """Look at the step's value, if it has one.

        Raises:
            ValueError: The number is one of validation, and the recipe does not ask for any.
        """
        schedule = step.recipe.schedule
        if self._name.startswith("val/") and not schedule.eval_every:
            raise ValueError(
                f"there is no {self._name} to stop on: set schedule.eval_every, and data.val_json"
            )
        if self._name in step.values:
            self._values.append(step.values[self._name])
        elif step.number == schedule.n_steps and self._best is None and not self._values:
            logger.warning("no step had a %s, which the run was to stop on", self._name)
        if len(self._values) == self._window:
            self._compare(sum(self._values) / self._window, step)
            self._values.clear()

    def _compare(self, value: float, step: FinishedStep) -> None:
        if self._best is None or self._sign * (value - self._best) > self._min_change:
            self._best, self._n_worse = value, 0
            return
        self._n_worse += 1
        if self._n_worse >= self._patience:
            step.stop(
                f"{self._name} was no better than {self._best:.4g} for {self._n_worse} "
                f"{'values' if self._window == 1 else f'means of {self._window} values'} in a row"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and what came since."""
        return {"best": self._best, "n_worse": self._n_worse, "values": list(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._best, self._n_worse = state["best"], state["n_worse"]
        self._values = list(state["values"])
