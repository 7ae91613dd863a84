"""The training loop: steps, hooks, logs, checkpoints, interruption."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from bsgal_train.data import TrainingSample
from bsgal_train.engine.divergence import save_divergence
from bsgal_train.engine.hooks import FinishedStep, HookList
from bsgal_train.engine.progress import Progress
from bsgal_train.engine.step import DivergedError, StepOutcome, TrainingSteps
from bsgal_train.engine.timer import StepTimer
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.checkpoint import CheckpointFolder
from bsgal_train.run_folder.decision_log import DecisionLog
from bsgal_train.run_folder.layout import RunFolder
from bsgal_train.run_folder.run_log import MetricsLog

__all__ = ["Trainer", "TrainingInterruptedError"]

logger = logging.getLogger(__name__)


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
        hooks: called after every step.
        progress: told after every step, once its checkpoint is written where one is due.
    """

    recipe: Recipe
    steps: TrainingSteps
    batches: Callable[[int], Iterable[list[TrainingSample]]]
    folder: Path
    hooks: HookList = field(default_factory=HookList)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._checkpoints = CheckpointFolder(
            RunFolder(self.folder).checkpoints, keep=self.recipe.checkpoint.keep
        )

    @property
    def _is_done(self) -> bool:
        return self.steps.n_done >= self.recipe.schedule.n_steps or self.hooks.stopped is not None

    def run(self) -> None:
        """Train until the last step, or until a hook ends the run.

        Raises:
            DivergedError: if a loss is not finite, and the step is not one that the recipe lets be
                left out.
            TrainingInterruptedError: after Ctrl-C, once a checkpoint is written.
            TypeError: if the state of a hook cannot be stored.
        """
        self._resume()
        if self._is_done:
            return
        # A state that no checkpoint can hold is told before the first step.
        self.hooks.state_dict()
        resumed = self.steps.n_done
        decisions = DecisionLog(RunFolder(self.folder).decisions, resumed_step=resumed)
        batches = iter(self.batches(self.steps.position))
        began = time.monotonic()
        with MetricsLog(self.folder, resumed_step=resumed) as metrics, _interrupts() as stop:
            timer = StepTimer()
            while not self._is_done:
                samples = next(batches)
                with timer.step():
                    outcome = self._take(samples)
                timer.add_scoring(outcome.statistics.get("scoring_s", 0.0))
                decisions.add(outcome.decisions)
                step = self._finished(samples, outcome)
                with timer.aside():
                    self.hooks.after_step(step)
                interrupted = self._agree_to_stop(stop.is_set())
                row = dict(step.recorded)
                if step.number % self.recipe.schedule.log_every == 0 or self._is_done:
                    row = {**step.values, **timer.row()}
                if row:
                    metrics.write(step.number, row)
                self._save_if_due(decisions, interrupted)
                self._tell(step)
        logger.info("trained to step %d in %.0f s", self.steps.n_done, time.monotonic() - began)
        if self.hooks.stopped is not None:
            logger.warning("ended after step %d: %s", self.steps.n_done, self.hooks.stopped)

    def _take(self, samples: list[TrainingSample]) -> StepOutcome:
        """Take the next step, or leave it out if it diverges and the recipe allows it."""
        try:
            return self.steps.take(samples)
        except DivergedError as error:
            number = self.steps.n_done + 1
            path = save_divergence(self.folder, self.recipe, number, samples, error)
            logger.error("what the step was made of is in %s", path)
            outcome = self.steps.skip(error)
            logger.warning("left out step %d, which diverged: %s", number, error)
            return outcome

    def _finished(self, samples: list[TrainingSample], outcome: StepOutcome) -> FinishedStep:
        return FinishedStep(
            number=self.steps.n_done,
            recipe=self.recipe,
            folder=self.folder,
            detector=self.steps.detector,
            averaged=self.steps.averaged,
            samples=samples,
            decisions=outcome.decisions,
            values={**outcome.losses, **outcome.statistics},
        )

    def _agree_to_stop(self, interrupted: bool) -> bool:
        """Share a hook's or a user's wish to stop: one process has it, all stop after this step.

        Returns:
            Whether the user interrupted any of the processes.
        """
        if not processes.total(interrupted or self.hooks.stopped is not None):
            return False
        self.hooks.share_stop()
        return processes.total(interrupted) > 0

    def _save_if_due(self, decisions: DecisionLog, interrupted: bool) -> None:
        number = self.steps.n_done
        if not (self._is_done or interrupted or number % self.recipe.checkpoint.every == 0):
            return
        decisions.flush(number)
        self.steps.skipped.share()
        path = self._save()
        if interrupted and not self._is_done:
            raise TrainingInterruptedError(
                f"stopped after step {number} of {self.recipe.schedule.n_steps}; saved {path}; "
                "the same command goes on from there"
            )

    def _tell(self, step: FinishedStep) -> None:
        if self.progress is not None:
            loss = step.values.get("loss")
            text = "diverged, left out" if loss is None else f"loss {loss:.3f}"
            self.progress(step.number, self.recipe.schedule.n_steps, text)

    def _save(self) -> Path:
        """Write a checkpoint in the first process; the others hold the same state."""
        # In all processes, as a hook may exchange something with the others.
        hooks = self.hooks.state_dict()
        with processes.first_before_others():
            if processes.rank() != 0:
                return self._checkpoints.path(self.steps.n_done)
            return self._checkpoints.save(self.steps.state(hooks))

    def _resume(self) -> None:
        """Go on from the newest checkpoint that the first process can read."""
        state = self._checkpoints.load_newest() if processes.rank() == 0 else None
        number = processes.broadcast(None if state is None else state.step)
        if number is None:
            return
        state = state or self._checkpoints.load(number)
        self.steps.load_state(state, f"the checkpoint {self._checkpoints.path(number)}")
        self.hooks.load_state_dict(state.states.get("hooks", {}))
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
