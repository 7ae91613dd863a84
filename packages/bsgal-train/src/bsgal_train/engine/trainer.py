"""The training loop: steps, logs, checkpoints, interruption."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bsgal_train.data import TrainingSample
from bsgal_train.engine.divergence import save_divergence
from bsgal_train.engine.step import DivergedError, TrainingSteps
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.checkpoint import CheckpointFolder
from bsgal_train.run_folder.decision_log import DecisionLog
from bsgal_train.run_folder.run_log import MetricsLog

__all__ = ["Progress", "Trainer", "TrainingInterruptedError"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called after every step with steps done, steps in all, and a short text."""


class TrainingInterruptedError(KeyboardInterrupt):
    """The run was stopped by the user after saving a checkpoint; starting again goes on."""


@dataclass(kw_only=True)
class Trainer:
    """Train a detector to the end of its recipe, going on from the newest checkpoint.

    Attributes:
        recipe: the resolved recipe.
        steps: takes them.
        batches: called with a start position, yields lists of training samples without end.
        folder: where checkpoints, metrics and decisions go.
        progress: told after every step.
        evaluate: called with the step where the recipe asks for an evaluation on the way;
            returns numbers for the metrics.
    """

    recipe: Recipe
    steps: TrainingSteps
    batches: Callable[[int], Iterable[list[TrainingSample]]]
    folder: Path
    progress: Progress | None = None
    evaluate: Callable[[int], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        self._checkpoints = CheckpointFolder(
            self.folder / "checkpoints", keep=self.recipe.checkpoint.keep
        )

    def run(self) -> None:
        """Train until the last step.

        Raises:
            DivergedError: if a loss is not finite, and the step is not one that the recipe lets be
                left out.
            TrainingInterruptedError: after Ctrl-C, once a checkpoint is written.
        """
        self._resume()
        schedule = self.recipe.schedule
        resumed = self.steps.n_done
        if resumed >= schedule.n_steps:
            return
        decisions = DecisionLog(self.folder / "decisions", resumed_step=resumed)
        batches = iter(self.batches(self.steps.position))
        with MetricsLog(self.folder, resumed_step=resumed) as metrics, _interrupts() as stop:
            began = logged = time.monotonic()
            n_logged = resumed
            scoring_s = busy_s = 0.0
            while self.steps.n_done < schedule.n_steps:
                samples = next(batches)
                step_began = time.monotonic()
                try:
                    outcome = self.steps.take(samples)
                except DivergedError as error:
                    number = self.steps.n_done + 1
                    path = save_divergence(self.folder, self.recipe, number, samples, error)
                    logger.error("what the step was made of is in %s", path)
                    outcome = self.steps.skip(error)
                    logger.warning("left out step %d, which diverged: %s", number, error)
                busy_s += time.monotonic() - step_began
                values = {**outcome.losses, **outcome.statistics}
                scoring_s += values.pop("scoring_s", 0.0)
                decisions.add(outcome.decisions)
                step = self.steps.n_done
                last = step == schedule.n_steps
                if step % schedule.log_every == 0 or last:
                    now = time.monotonic()
                    values["step_s"] = (now - logged) / (step - n_logged)
                    values["scoring_s"] = scoring_s / (step - n_logged)
                    values["overhead_share"] = scoring_s / busy_s
                    metrics.write(step, values)
                    logged, n_logged = now, step
                    scoring_s = busy_s = 0.0
                if schedule.eval_every and step % schedule.eval_every == 0 and self.evaluate:
                    with self.steps.averaged():
                        metrics.write(step, self.evaluate(step))
                    logged, n_logged = time.monotonic(), step
                    scoring_s = busy_s = 0.0
                # One process may have been told to stop; all do, after the same step.
                stops = processes.total(stop.is_set()) > 0
                if last or stops or step % self.recipe.checkpoint.every == 0:
                    decisions.flush(step)
                    self.steps.skipped.share()
                    path = self._save()
                    if stops and not last:
                        raise TrainingInterruptedError(
                            f"stopped after step {step} of {schedule.n_steps}; saved {path}; "
                            "the same command goes on from there"
                        )
                if self.progress is not None:
                    loss = values.get("loss")
                    text = "diverged, left out" if loss is None else f"loss {loss:.3f}"
                    self.progress(step, schedule.n_steps, text)
        logger.info("trained to step %d in %.0f s", step, time.monotonic() - began)

    def _save(self) -> Path:
        """Write a checkpoint in the first process; the others hold the same state."""
        with processes.first_before_others():
            if processes.rank() != 0:
                return self._checkpoints.path(self.steps.n_done)
            return self._checkpoints.save(self.steps.state())

    def _resume(self) -> None:
        """Go on from the newest checkpoint that the first process can read."""
        state = self._checkpoints.load_newest() if processes.rank() == 0 else None
        number = processes.broadcast(None if state is None else state.step)
        if number is None:
            return
        state = state or self._checkpoints.load(number)
        self.steps.load_state(state, f"the checkpoint {self._checkpoints.path(number)}")
        logger.info("going on from step %d", number)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no step is cut in half; the second one acts."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(signal_number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        stop.set()

    previous = signal.signal(signal.SIGINT, request_stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
