"""What a user's code does after every step of a run, without an edit of the loop."""

from __future__ import annotations

import io
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from bsgal_train.data import TrainingSample
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import Decision

__all__ = ["FinishedStep", "Hook", "HookList"]

logger = logging.getLogger(__name__)

# What a row of the run's log holds beside the values of its step.
_OWN_COLUMNS = frozenset({"step", "step_s", "scoring_s", "overhead_share"})


@dataclass(kw_only=True, slots=True)
class FinishedStep:
    """A step that a run has taken, as its hooks see it.

    Attributes:
        number: of the step, from 1.
        recipe: of the run.
        folder: output folder of the run.
        detector: with the weights after the step, in training mode; hooks leave it as it is.
        averaged: gives the detector its averaged weights inside a `with` block, if the recipe
            keeps them.
        samples: what this process trained on.
        decisions: what this process judged, in the order it was made.
        values: losses (means over all processes; none where the step diverged and was left out),
            statistics of this process, and what earlier hooks recorded.
        recorded: what hooks recorded, by name.
        stop_reason: why a hook asks for the end of the run; None if none does.
    """

    number: int
    recipe: Recipe
    folder: Path
    detector: nn.Module
    averaged: Callable[[], AbstractContextManager[None]] = nullcontext
    samples: Sequence[TrainingSample]
    decisions: tuple[Decision, ...]
    values: dict[str, float]
    recorded: dict[str, float] = field(default_factory=dict, init=False)
    stop_reason: str | None = field(default=None, init=False)

    def record(self, values: Mapping[str, float]) -> None:
        """Add numbers to the step's row of the run's log; later hooks find them in `values`.

        Raises:
            ValueError: The step has a number of this name already.
        """
        taken = values.keys() & (self.values.keys() | _OWN_COLUMNS)
        if taken:
            raise ValueError(
                f"step {self.number} has {', '.join(sorted(taken))} already; record it under "
                "another name, such as my/loss"
            )
        self.values.update(values)
        self.recorded.update(values)

    def stop(self, reason: str) -> None:
        """Ask that the run ends after this step, in all processes, with what it has learnt.

        A checkpoint is written, the detector is evaluated and stored, as after the last step.
        """
        self.stop_reason = self.stop_reason or reason


@runtime_checkable
class Hook(Protocol):
    """Something done after every step of a run; a subclass has to say what, in `after_step`.

    Each process of a run has its own hooks, all are called alike, and a checkpoint keeps the state
    of the first process's. A hook whose numbers are to be those of the whole run, or which waits
    for the other processes, uses `bsgal_train.processes.group`. What a hook raises ends the run.
    """

    @abstractmethod
    def after_step(self, step: FinishedStep) -> None:
        """Do something after a step, before a checkpoint of it is written."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: numbers, text and tensors in lists and dictionaries.

        All processes are asked, before every checkpoint.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        del state


class HookList:
    """A run's hooks in their order, and why one of them has ended the run.

    A hook goes by the name of its class; a further one of the same class has a number behind it.

    Args:
        hooks: called in this order.

    Attributes:
        stopped: why a hook has ended the run; None if none has.

    Raises:
        TypeError: One is no hook.
    """

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._hooks: dict[str, Hook] = {}
        for hook in hooks:
            if isinstance(hook, type) or not isinstance(hook, Hook):
                raise TypeError(
                    f"`hooks` must hold objects of subclasses of bsgal_train.Hook, got {hook!r}"
                )
            kind = type(hook).__name__
            n_before = sum(type(one).__name__ == kind for one in self._hooks.values())
            self._hooks[f"{kind}-{n_before + 1}" if n_before else kind] = hook
        self.stopped: str | None = None
        self._stopped_by: str | None = None

    def after_step(self, step: FinishedStep) -> None:
        """Call every hook, also those after one that asks for the end of the run."""
        for name, hook in self._hooks.items():
            hook.after_step(step)
            if step.stop_reason is not None and self._stopped_by is None:
                self._stopped_by, self.stopped = name, step.stop_reason

    def share_stop(self) -> None:
        """Have the run ended in all processes if it is in one; all processes have to call it."""
        asked = [one for (one,) in processes.gather([(self._stopped_by, self.stopped)]) if one[0]]
        if asked:
            self._stopped_by, self.stopped = asked[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all hooks, by name.

        Raises:
            TypeError: One holds something that a checkpoint could not give back.
        """
        states = {name: _storable(name, hook.state_dict()) for name, hook in self._hooks.items()}
        return {"states": states, "stopped": self.stopped, "stopped_by": self._stopped_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; hooks may have come or gone since.

        A run that a hook has ended goes on without that hook.
        """
        states = state.get("states", {})
        for name, hook in self._hooks.items():
            if name in states:
                hook.load_state_dict(states[name])
            elif hook.state_dict():
                logger.warning("the hook %s begins anew: the checkpoint has no state of it", name)
        for name in states:
            if states[name] and name not in self._hooks:
                logger.warning("the hook %s is no longer there, its state is dropped", name)
        if state.get("stopped_by") in self._hooks:
            self._stopped_by, self.stopped = state["stopped_by"], state["stopped"]


def _storable(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Return a hook's state, or raise if a checkpoint with it could not be read again."""
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    # What pickling and its counterpart raise of types that they do not take.
    except (AttributeError, PickleError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"the state of the hook {name} must be numbers, text and tensors in lists and "
            f"dictionaries, so that a checkpoint can give it back: {error}"
        ) from error
    return state
