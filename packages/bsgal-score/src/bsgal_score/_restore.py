"""Try things out on a model and its optimizer, and put everything back bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Snapshot:
    """A copy of parameters, gradients, buffers, modes, optimizer state and random state.

    Tensors are restored in place, so a graph built before cannot be used for a backward pass after.

    Args:
        optimizer: Its parameters, their gradients and its state are copied.
        model: Its parameters, buffers and train or eval modes are copied too.
        generators: Generators of random numbers, besides the global ones.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        tensors = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        if model is not None:
            tensors |= {id(t): t for t in (*model.parameters(), *model.buffers())}
        self._tensors = [(t, t.detach().clone(), t.grad, _copy(t.grad)) for t in tensors.values()]
        self._optimizer = optimizer
        self._settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self._state = {
            parameter: [(key, value, _copy(value)) for key, value in entries.items()]
            for parameter, entries in optimizer.state.items()
        }
        self._modes = [] if model is None else [(m, m.training) for m in model.modules()]
        self._random_state = random_state()
        self._generators = [(generator, generator.get_state()) for generator in generators]

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for tensor, value, grad, grad_value in self._tensors:
                tensor.copy_(value)
                tensor.grad = None if grad is None else grad.copy_(grad_value)
            for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
                group.update(settings)
            self._optimizer.state.clear()
            for parameter, entries in self._state.items():
                self._optimizer.state[parameter] = {
                    key: value.copy_(copy) if isinstance(value, Tensor) else _copy(copy)
                    for key, value, copy in entries
                }
        for module, training in self._modes:
            module.training = training
        self.restore_random_state()

    def restore_random_state(self) -> None:
        """Put the random state back and leave the rest as it is."""
        set_random_state(self._random_state)
        for generator, state in self._generators:
            generator.set_state(state)


@contextmanager
def restored(
    optimizer: Optimizer,
    model: nn.Module | None = None,
    generators: Sequence[torch.Generator] = (),
) -> Iterator[Snapshot]:
    """Restore everything when the block ends; the snapshot restores it in between as well."""
    snapshot = Snapshot(optimizer, model, generators)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def random_state() -> tuple[Any, ...]:
    """Return the state of the global generators of Python, NumPy and torch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    # What a loss draws from is not ours to choose, so the global generators are covered too.
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def set_random_state(state: tuple[Any, ...]) -> None:
    """Put back what `random_state` returned."""
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002 - see above
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
