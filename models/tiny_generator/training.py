"""Run one training stage against the clock: several processes, resumable, learning rate by time."""

from __future__ import annotations

import math
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

CHECKPOINT_EVERY_S = 120.0
PROGRESS_EVERY_S = 10.0
WARM_UP_STEPS = 100
AVERAGE_DECAY = 0.999


class Task(Protocol):
    """Say what is trained: the parameters of an `nn.Module` with these members."""

    optimizer: torch.optim.Optimizer
    learning_rate: float

    def loss(self, rng: np.random.Generator, time_share: float) -> torch.Tensor:
        """Return the loss of a random batch, `time_share` of the way through the training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Describe one stage of training.

    Attributes:
        name: What the progress line calls it.
        build: Makes the task; called in every process, so it must be importable.
        checkpoint: Where its state is kept.
        seconds: How long it trains, over all its runs.
        n_processes: How many processes share the work; each takes a batch of its own per step.
    """

    name: str
    build: Callable[[], nn.Module]
    checkpoint: Path
    seconds: float
    n_processes: int = 2


class StageInterruptedError(RuntimeError):
    """Tell that a stage was interrupted and has saved its state."""


def run_stage(stage: Stage, seed: int = 0) -> None:
    """Train until the stage's time is used up, from its checkpoint if there is one.

    Every process runs on one thread and meets the others once per step, not once per operation, so
    that other work on the machine slows the training down but does not stall it.

    Raises:
        StageInterruptedError: If the user pressed Ctrl-C; the state is saved.
    """
    if is_finished(stage):
        return
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(
            _train, (stage, seed, f"file://{folder}/rendezvous"), stage.n_processes, join=False
        )
        inherited = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes end by themselves
        try:
            while not context.join():
                pass
        finally:
            signal.signal(signal.SIGINT, inherited)
    if not is_finished(stage):
        raise StageInterruptedError(f"{stage.name}: interrupted; run the same command to go on")


def is_finished(stage: Stage) -> bool:
    """Return whether the stage has used up its time."""
    if not stage.checkpoint.exists():
        return False
    state = torch.load(stage.checkpoint, map_location="cpu", mmap=True)
    return bool(state["elapsed_s"] >= stage.seconds)


def load_average(stage: Stage) -> dict[str, torch.Tensor]:
    """Return the averaged weights of the stage's last checkpoint."""
    return torch.load(stage.checkpoint, map_location="cpu")["average"]


def _train(rank: int, stage: Stage, seed: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=stage.n_processes)
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    run = _Run(stage, rank)
    rng = np.random.default_rng([seed, rank, run.n_steps])
    progress = _Progress(stage, run.elapsed_s)
    save_at_s = run.elapsed_s + CHECKPOINT_EVERY_S
    n_interrupts = 0.0
    while run.elapsed_s < stage.seconds and n_interrupts == 0:
        loss, n_interrupts = run.step(rng, n_interrupts=len(interrupts))
        if rank > 0:
            continue
        is_last = run.elapsed_s >= stage.seconds or n_interrupts > 0
        progress.update(run, loss, print_now=is_last)
        if is_last or run.elapsed_s >= save_at_s:
            run.save()
            save_at_s = run.elapsed_s + CHECKPOINT_EVERY_S
    dist.destroy_process_group()


class _Run:
    """Hold the state of a stage in one process; all processes keep equal weights."""

    def __init__(self, stage: Stage, rank: int) -> None:
        self._stage = stage
        self._rank = rank
        self._task = stage.build()
        self._parameters = dict(self._task.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._optimizer = self._task.optimizer
        self.n_steps = 0
        self.elapsed_s = 0.0
        if stage.checkpoint.exists():
            self._restore(torch.load(stage.checkpoint, map_location="cpu"))
        self._started_s = time.monotonic() - self.elapsed_s

    def step(self, rng: np.random.Generator, n_interrupts: int) -> tuple[float, float]:
        """Take one optimizer step on the batches of all processes.

        Returns:
            The mean loss and the number of interrupts, both over all processes.
        """
        loss = self._task.loss(rng, self._time_share)
        loss.backward()
        clock_s = time.monotonic() - self._started_s if self._rank == 0 else 0.0
        loss_sum, self.elapsed_s, all_interrupts = self._share(
            [loss.item(), clock_s, float(n_interrupts)]
        )
        nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        self._optimizer.param_groups[0]["lr"] = self._learning_rate()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.n_steps += 1
        decay = min(AVERAGE_DECAY, (1 + self.n_steps) / (10 + self.n_steps))
        current = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self._average.values()), current, 1.0 - decay)
        return loss_sum / self._stage.n_processes, all_interrupts

    def _share(self, numbers: list[float]) -> list[float]:
        """Average the gradients and add up the numbers over all processes, in one message."""
        gradients = [parameter.grad for parameter in self._parameters.values()]
        message = torch.cat([*(g.reshape(-1) for g in gradients), torch.tensor(numbers)])
        dist.all_reduce(message)
        blocks = message.split([*(g.numel() for g in gradients), len(numbers)])
        for gradient, block in zip(gradients, blocks[:-1], strict=True):
            gradient.copy_(block.view(gradient.shape) / self._stage.n_processes)
        return blocks[-1].tolist()

    @property
    def _time_share(self) -> float:
        return min(1.0, self.elapsed_s / self._stage.seconds)

    def _learning_rate(self) -> float:
        """Return the learning rate: up for some steps, then down half a cosine over time."""
        warm_up = min(1.0, (self.n_steps + 1) / WARM_UP_STEPS)
        return (
            self._task.learning_rate * warm_up * 0.5 * (1.0 + math.cos(math.pi * self._time_share))
        )

    def save(self) -> None:
        """Write the state, whole or not at all."""
        temporary = self._stage.checkpoint.with_suffix(".partial")
        state = {
            "model": self._task.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "step": self.n_steps,
            "elapsed_s": self.elapsed_s,
        }
        torch.save(state, temporary)
        temporary.replace(self._stage.checkpoint)

    def _restore(self, state: dict) -> None:
        self._task.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average = state["average"]
        self.n_steps, self.elapsed_s = state["step"], state["elapsed_s"]


class _Progress:
    """Print a line with the smoothed loss and the time left, every few seconds."""

    def __init__(self, stage: Stage, elapsed_s: float) -> None:
        self._stage = stage
        self._next_s = elapsed_s + PROGRESS_EVERY_S
        self._loss = math.nan

    def update(self, run: _Run, loss: float, *, print_now: bool) -> None:
        self._loss = loss if math.isnan(self._loss) else 0.99 * self._loss + 0.01 * loss
        if not print_now and run.elapsed_s < self._next_s:
            return
        self._next_s = run.elapsed_s + PROGRESS_EVERY_S
        left_s = max(0.0, self._stage.seconds - run.elapsed_s)
        print(
            f"{self._stage.name}: step {run.n_steps}, loss {self._loss:.4f}, "
            f"{run.elapsed_s / 60:.1f} min done, {left_s / 60:.1f} min left",
            flush=True,
        )
