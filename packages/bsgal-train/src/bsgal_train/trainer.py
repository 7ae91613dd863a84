"""The training loop: steps, schedule, checkpoints, interruption."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bsgal_train import processes
from bsgal_train.checkpoint import CheckpointFolder, TrainingState, check_same_model
from bsgal_train.decision_log import Decision, DecisionLog
from bsgal_train.metrics import MetricsLog
from bsgal_train.optimizer_step import OptimizerStep
from bsgal_train.recipe import OptimizerConfig, Recipe, ScheduleConfig
from bsgal_train.selection import SelectionStep

if TYPE_CHECKING:
    from bsgal_train.data import TrainingSample

__all__ = [
    "DivergedError",
    "Progress",
    "Trainer",
    "TrainingInterruptedError",
    "build_optimizer",
    "learning_rate",
    "peak_learning_rate",
    "step_seed",
]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called after every step with steps done, steps in all, and a short text."""


class DivergedError(RuntimeError):
    """A loss or a gradient is not finite; the message names the step and its images."""


class TrainingInterruptedError(KeyboardInterrupt):
    """The run was stopped by the user after saving a checkpoint; starting again goes on."""


def learning_rate(step: int, lr: float, schedule: ScheduleConfig) -> float:
    """Return the rate of a step, counted from 1: linear warm-up, then cosine."""
    if step <= schedule.warmup_steps:
        return lr * step / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(schedule.n_steps - schedule.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return lr * (schedule.final_lr_factor + (1 - schedule.final_lr_factor) * cosine)


def step_seed(seed: int, step: int) -> int:
    """Return the seed of everything drawn inside a step, so that a resumed run draws the same."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def peak_learning_rate(recipe: Recipe) -> float:
    """Return the recipe's rate at the batch size it runs with, and log where that changes it.

    The rate of Adam goes with the root of the batch size (arXiv 2205.10287); the number of steps is
    the recipe's, whatever the batch.
    """
    config, meant = recipe.optimizer, recipe.optimizer.lr_batch_size
    batch = recipe.schedule.batch_size
    if meant in (0, batch):
        return config.lr
    lr = config.lr * math.sqrt(batch / meant)
    logger.warning(
        "the recipe's rate %g is meant for batches of %d; with %d it is %g (root of their ratio). "
        "To see as many images, %d steps would be needed instead of %d; schedule.n_accumulate "
        "runs large batches in parts",
        config.lr, meant, batch, lr,
        round(recipe.schedule.n_steps * meant / batch), recipe.schedule.n_steps,
    )  # fmt: skip
    return lr


def build_optimizer(detector: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and kernels, and norms and biases if they are to."""
    parameters = [p for p in detector.parameters() if p.requires_grad]
    rest_decay = config.weight_decay if config.decay_all else 0.0
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": rest_decay},
        ],
        lr=config.lr,
    )


@dataclass(kw_only=True)
class Trainer:
    """Train a detector to the end of its recipe, going on from the newest checkpoint.

    Attributes:
        recipe: the resolved recipe.
        detector: changed in place.
        optimizer: of the detector, from `build_optimizer`; its rate is set at every step.
        selection: the mode's step.
        batches: called with a start position, yields lists of training samples without end.
        folder: where checkpoints, metrics and decisions go.
        progress: told after every step.
        evaluate: called with the step where the recipe asks for an evaluation on the way;
            returns numbers for the metrics.
    """

    recipe: Recipe
    detector: nn.Module
    optimizer: torch.optim.Optimizer
    selection: SelectionStep
    batches: Callable[[int], Iterable[list[TrainingSample]]]
    folder: Path
    progress: Progress | None = None
    evaluate: Callable[[int], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        self._checkpoints = CheckpointFolder(
            self.folder / "checkpoints", keep=self.recipe.checkpoint.keep
        )
        self._update = OptimizerStep(
            self.detector, self.optimizer, self.recipe.optimizer, self.recipe.detector.precision
        )
        self._lr = peak_learning_rate(self.recipe)
        self._step = 0
        self._position = 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the detector its averaged weights inside the block, if the recipe keeps them."""
        with self._update.averaged():
            yield

    def run(self) -> None:
        """Train until the last step.

        Raises:
            DivergedError: if a loss is not finite.
            TrainingInterruptedError: after Ctrl-C, once a checkpoint is written.
        """
        self._resume()
        schedule = self.recipe.schedule
        if self._step >= schedule.n_steps:
            return
        self.detector.train()
        decisions = DecisionLog(self.folder / "decisions", resumed_step=self._step)
        batches = iter(self.batches(self._position))
        with MetricsLog(self.folder, resumed_step=self._step) as metrics, _interrupts() as stop:
            began = logged = time.monotonic()
            n_logged = self._step
            scoring_s = busy_s = 0.0
            while self._step < schedule.n_steps:
                samples = next(batches)
                step_began = time.monotonic()
                try:
                    values = self._train_step(samples, decisions)
                except DivergedError as error:
                    self._record_divergence(samples, error)
                    raise
                busy_s += time.monotonic() - step_began
                scoring_s += values.pop("scoring_s", 0.0)
                step = self._step
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
                    with self.averaged():
                        metrics.write(step, self.evaluate(step))
                    self.detector.train()
                    logged, n_logged = time.monotonic(), step
                    scoring_s = busy_s = 0.0
                # One process may have been told to stop; all do, after the same step.
                stops = processes.total(stop.is_set()) > 0
                if last or stops or step % self.recipe.checkpoint.every == 0:
                    decisions.flush(step)
                    path = self._save()
                    if stops and not last:
                        raise TrainingInterruptedError(
                            f"stopped after step {step} of {schedule.n_steps}; saved {path}; "
                            "the same command goes on from there"
                        )
                if self.progress is not None:
                    self.progress(step, schedule.n_steps, f"loss {values['loss']:.3f}")
        logger.info("trained to step %d in %.0f s", self._step, time.monotonic() - began)

    def _record_divergence(self, samples: list[TrainingSample], error: DivergedError) -> None:
        """Leave what is needed to look at the step in `nonfinite/`, one file per process.

        All sampling in a step follows from its seed; torch's global state is kept for what does
        not, such as drop-out.
        """
        step = self._step + 1
        folder = self.folder / "nonfinite"
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "step": step,
            "seed": step_seed(self.recipe.schedule.seed, step),
            "message": str(error),
            "torch_random_state": bytes(torch.get_rng_state().tolist()).hex(),
            "samples": [
                {
                    "position": sample.position,
                    "image_id": sample.original["image_id"],
                    "file_name": sample.original["file_name"],
                    "instance_ids": [paste.instance_id for paste in sample.pastes],
                }
                for sample in samples
            ],
        }
        path = folder / f"step-{step:08d}-process-{processes.rank()}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
        logger.error("the step's images, instances and random state are in %s", path)

    def _train_step(
        self, samples: list[TrainingSample], decisions: DecisionLog
    ) -> dict[str, float]:
        step = self._step + 1
        seed = step_seed(self.recipe.schedule.seed, step)
        # Before the selection, which may look ahead at the step.
        lr = learning_rate(step, self._lr, self.recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        n_parts = self.recipe.schedule.n_accumulate
        size = len(samples) // n_parts
        values: dict[str, float] = {}
        found: list[Decision] = []
        for first in range(0, len(samples), size):
            part = samples[first : first + size]
            try:
                selected = self.selection(self.detector, part, step, seed)
            except FloatingPointError as error:
                # detectron2 looks at its proposals before there is a loss.
                raise _diverged(step, part, str(error)) from error
            total = torch.stack(list(selected.losses.values())).sum()
            _check_finite(step, part, selected.losses)
            self._update.backward(total / n_parts)
            found += selected.decisions
            losses = {"loss": total, **selected.losses}
            _add(values, losses, n_parts)
            _merge(values, selected.statistics)
        # Before unscaling, so that an overflow in one process is seen by all.
        processes.average_gradients(self.detector.parameters())
        self._update.unscaled_gradients()
        norm = self._update.clip()
        if not self._update.may_overflow:
            _check_finite(step, samples, {"gradient norm": norm})
        self._update.apply()
        decisions.add(found)
        self._step = step
        self._position += self.recipe.schedule.batch_size
        values |= {name: processes.mean(values[name]) for name in losses}
        return {**values, "lr": lr, "gradient_norm": float(norm)}

    def _save(self) -> Path:
        """Write a checkpoint in the first process; the others hold the same state."""
        with processes.first_before_others():
            if processes.rank() != 0:
                return self._checkpoints.path(self._step)
            return self._checkpoints.save(
                TrainingState(
                    step=self._step,
                    position=self._position,
                    model=self.detector.state_dict(),
                    states={name: part.state_dict() for name, part in self._stateful().items()},
                )
            )

    def _resume(self) -> None:
        """Go on from the newest checkpoint that the first process can read."""
        state = self._checkpoints.load_newest() if processes.rank() == 0 else None
        step = processes.broadcast(None if state is None else state.step)
        if step is None:
            return
        state = state or self._checkpoints.load(step)
        check_same_model(
            state.model,
            self.detector.state_dict(),
            f"the checkpoint {self._checkpoints.path(step)}",
        )
        self.detector.load_state_dict(state.model)
        for name, part in self._stateful().items():
            part.load_state_dict(state.states[name])
        self._step, self._position = state.step, state.position
        logger.info("going on from step %d", self._step)

    def _stateful(self) -> dict[str, Any]:
        """Return what a step depends on beside the detector, by its name in checkpoints."""
        return {"optimizer": self.optimizer, "update": self._update, "selection": self.selection}


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


def _check_finite(step: int, samples: list[TrainingSample], values: dict[str, Tensor]) -> None:
    numbers = {name: float(value.detach()) for name, value in values.items()}
    bad = {name: number for name, number in numbers.items() if not math.isfinite(number)}
    if bad:
        raise _diverged(step, samples, f"not finite: {bad}")


def _diverged(step: int, samples: list[TrainingSample], what: str) -> DivergedError:
    images = ", ".join(str(sample.original["image_id"]) for sample in samples)
    instances = ", ".join(paste.instance_id for s in samples for paste in s.pastes) or "none"
    return DivergedError(
        f"step {step}: {what}; the images were {images}, the pasted instances {instances}; "
        "lower optimizer.lr or look at these samples"
    )


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
