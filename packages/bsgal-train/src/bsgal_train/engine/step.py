"""A run's steps, and the state that they go on from; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bsgal_score.errors import NonFiniteGradientError
from bsgal_train.data import TrainingSample
from bsgal_train.data.skipped_files import SkippedFiles
from bsgal_train.engine.optimizer import learning_rate, peak_learning_rate
from bsgal_train.engine.steering import SteeredDraws
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.checkpoint import StoredParts, TrainingState, check_same_model
from bsgal_train.run_folder.decision_log import Decision
from bsgal_train.selection import SelectionStep

__all__ = ["DivergedError", "StepOutcome", "TrainingSteps", "step_seed"]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step came to.

    Attributes:
        losses: mean over the step's parts and over processes, `loss` is their sum. Only those that
            were computed, of this process alone, where the step diverged.
        decisions: this process's, in the order they were made.
        statistics: other numbers for the metrics.
    """

    losses: dict[str, float]
    decisions: tuple[Decision, ...]
    statistics: dict[str, float]


class DivergedError(RuntimeError):
    """A loss or a gradient is not finite; the message names the step and its images.

    Attributes:
        outcome: what the step had come to.
        is_joint: every process of the run has come to this point and knows of it.
    """

    def __init__(self, message: str, outcome: StepOutcome, *, is_joint: bool = True) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.is_joint = is_joint


def step_seed(seed: int, step: int) -> int:
    """Return the seed of everything drawn inside a step, so that a resumed run draws the same."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


class TrainingSteps:
    """Take a run's steps one after the other.

    Args:
        recipe: the resolved recipe.
        detector: changed in place.
        update: of the detector; the rate of its optimizer is set at every step.
        selection: the mode's step.
        skipped: counts what its samples and the selection could not read.
        draws: told of every step, also of those left out; None where draws follow nothing.

    Attributes:
        detector: as given.
        skipped: as given.
        n_done: steps taken, those left out among them.
        n_skipped: steps that were left out.
        position: position in the stream of training samples of the next step's first one.
    """

    def __init__(
        self,
        recipe: Recipe,
        detector: nn.Module,
        update: OptimizerStep,
        selection: SelectionStep,
        skipped: SkippedFiles,
        draws: SteeredDraws | None = None,
    ) -> None:
        self._schedule = recipe.schedule
        self._max_skipped = recipe.optimizer.max_skipped_steps
        self.detector = detector
        self._optimizer = update.optimizer
        self._update = update
        self._selection = selection
        self.skipped = skipped
        self._draws = draws
        self._stored = StoredParts(
            optimizer=update.optimizer,
            update=update,
            selection=selection,
            skipped=skipped,
            draws=draws,
        )
        self._lr = peak_learning_rate(recipe)
        self.n_done = 0
        self.n_skipped = 0
        self.position = 0

    def averaged(self) -> AbstractContextManager[None]:
        """Give the detector its averaged weights inside the block, if the recipe keeps them."""
        return self._update.averaged()

    def take(self, samples: Sequence[TrainingSample]) -> StepOutcome:
        """Train on the next step's samples.

        Raises:
            DivergedError: a loss or a gradient is not finite; the weights are as they were.
        """
        self.detector.train()
        number = self.n_done + 1
        seed = step_seed(self._schedule.seed, number)
        # Before the selection, which may look ahead at the step.
        lr = learning_rate(number, self._lr, self._schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        n_parts = self._schedule.n_accumulate
        size = len(samples) // n_parts
        losses: dict[str, float] = {}
        decisions: list[Decision] = []
        statistics: dict[str, float] = {"lr": lr}

        def diverged(
            part: Sequence[TrainingSample], what: str, *, is_joint: bool = True
        ) -> DivergedError:
            return DivergedError(
                f"step {number}: {what}; {_contents(part)}; lower optimizer.lr or look at these "
                "samples",
                StepOutcome(losses, tuple(decisions), statistics),
                is_joint=is_joint,
            )

        for first in range(0, len(samples), size):
            part = samples[first : first + size]
            with _latest_losses(self.detector) as latest:
                try:
                    selected = self._selection(self.detector, part, number, seed)
                except (FloatingPointError, NonFiniteGradientError) as error:
                    # detectron2 looks at its proposals before there is a loss, the gradient cache
                    # at what it is given before the step sees the loss.
                    _add(losses, latest, n_parts)
                    bad = _not_finite(losses)
                    what = f"not finite: {bad}" if bad else str(error).rstrip(".")
                    # The cache raises in all processes. Of its proposals a process knows alone, and
                    # the others may be waiting for it inside their selection.
                    is_joint = processes.n_processes() == 1 or isinstance(
                        error, NonFiniteGradientError
                    )
                    raise diverged(part, what, is_joint=is_joint) from error
            total = torch.stack(list(selected.losses.values())).sum()
            _add(losses, {"loss": total, **selected.losses}, n_parts)
            _merge(statistics, selected.statistics)
            decisions += selected.decisions
            bad = _not_finite(losses)
            if processes.total(bool(bad)):
                where = f"{bad}" if bad else "a loss of another process"
                raise diverged(part, f"not finite: {where}")
            self._update.backward(total / n_parts)
        # Before unscaling, so that an overflow in one process is seen by all.
        processes.average_gradients(self.detector.parameters())
        self._update.unscaled_gradients()
        norm = self._update.clip()
        statistics["gradient_norm"] = float(norm)
        if not self._update.may_overflow and not math.isfinite(norm):
            raise diverged(samples, f"not finite: {{'gradient norm': {float(norm)}}}")
        self._update.apply()
        self._advance()
        return StepOutcome(
            {name: processes.mean(value) for name, value in losses.items()},
            tuple(decisions),
            statistics | self._skips(),
        )

    def skip(self, error: DivergedError) -> StepOutcome:
        """Leave out the next step, as it diverged: its samples are passed over.

        Weights, their average and the optimizer stay as they are. What the step had added to the
        windows and counts of the selection stays added; no cached gradient takes a number that is
        not finite.

        Args:
            error: that `take` raised.

        Raises:
            DivergedError: the same, as the recipe allows no further step to be left out, or as
                only this process knows of it.
        """
        if self.n_skipped >= self._max_skipped or not error.is_joint:
            raise error
        self.n_skipped += 1
        self._advance()
        lr = error.outcome.statistics["lr"]
        return StepOutcome({}, (), {"lr": lr} | self._skips())

    def _advance(self) -> None:
        self.n_done += 1
        self.position += self._schedule.batch_size
        if self._draws is not None:
            self._draws.after_step(self.n_done)

    def _skips(self) -> dict[str, float]:
        return {"n_skipped": float(self.n_skipped)} if self._max_skipped else {}

    def state(self, hooks: dict[str, Any] | None = None) -> TrainingState:
        """Return what a later step needs to be taken as if there had been no break.

        Args:
            hooks: state of what is called after the steps, kept beside theirs.
        """
        return TrainingState(
            step=self.n_done,
            position=self.position,
            model=self.detector.state_dict(),
            states={
                **self._stored.state_dicts(),
                "steps": {"n_skipped": self.n_skipped},
                "hooks": hooks or {},
            },
        )

    def load_state(self, state: TrainingState, source: str) -> None:
        """Go on from what `state` returned.

        Args:
            state: of this recipe's run.
            source: where it was stored, for messages.

        Raises:
            OtherModelError: it is the state of another model.
            ValueError: it is of a run with steering and this one has none, or the other way round.
        """
        if ("draws" in state.states) != (self._draws is not None):
            here, there = ("without", "with") if self._draws is None else ("with", "without")
            raise ValueError(
                f"{source} is of a run {there} steering, and this one is {here}; go on {there} it"
            )
        check_same_model(state.model, self.detector.state_dict(), source)
        self.detector.load_state_dict(state.model)
        self._stored.load_state_dicts(state.states)
        self.n_done, self.position = state.step, state.position
        self.n_skipped = state.states["steps"]["n_skipped"]


@contextmanager
def _latest_losses(detector: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Fill a mapping with the losses of the detector's latest pass inside the block."""
    latest: dict[str, Tensor] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        # Without their graph, which may have to go before the next pass.
        latest.clear()
        if isinstance(output, dict):
            latest.update({name: value.detach() for name, value in output.items()})

    handle = detector.register_forward_hook(note)
    try:
        yield latest
    finally:
        handle.remove()


# Statistics that count something in every part of a step; of the others, the last part's hold.
_SUMMED = ("n_pasted", "scoring_s")


def _add(values: dict[str, float], losses: dict[str, Tensor], n_parts: int) -> None:
    """Add the losses of one of a step's parts to their mean."""
    for name, value in losses.items():
        values[name] = values.get(name, 0.0) + float(value.detach()) / n_parts


def _merge(values: dict[str, float], statistics: dict[str, float]) -> None:
    """Add the statistics of a further part of a step."""
    for name, value in statistics.items():
        values[name] = value + values.get(name, 0.0) if name in _SUMMED else value


def _not_finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isfinite(value)}


def _contents(samples: Sequence[TrainingSample]) -> str:
    images = ", ".join(str(sample.original.image_id) for sample in samples)
    instances = ", ".join(paste.instance_id for s in samples for paste in s.pastes) or "none"
    return f"the images were {images}, the pasted instances {instances}"
