"""How long a run's steps take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["StepTimer"]


class StepTimer:
    """Measure steps from one row of the run's log to the next."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._began = time.monotonic()
        self._n_steps = 0
        self._step_s = self._scoring_s = self._aside_s = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the block as a step."""
        began = time.monotonic()
        yield
        self._step_s += time.monotonic() - began
        self._n_steps += 1

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the block's time out: it is no part of training."""
        began = time.monotonic()
        yield
        self._aside_s += time.monotonic() - began

    def add_scoring(self, seconds: float) -> None:
        """Say how much of the latest step went into scoring."""
        self._scoring_s += seconds

    def row(self) -> dict[str, float]:
        """Return what the steps since the last row took, and begin anew.

        Returns:
            `step_s`: mean seconds of a step with its loading; `scoring_s`: mean seconds of
            scoring; `overhead_share`: of a step without its loading, the share of scoring.
        """
        elapsed_s = time.monotonic() - self._began - self._aside_s
        row = {
            "step_s": elapsed_s / self._n_steps,
            "scoring_s": self._scoring_s / self._n_steps,
            "overhead_share": self._scoring_s / self._step_s,
        }
        self._restart()
        return row
