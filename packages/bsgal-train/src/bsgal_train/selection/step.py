"""What every selection mode does in a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from bsgal_train.data import TrainingSample
from bsgal_train.run_folder.decision_log import Decision

__all__ = ["Selected", "SelectionStep"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selected:
    """What a step trains on.

    Attributes:
        losses: the detector's named losses with their graph; their sum is minimised.
        decisions: one row per judged instance, empty for modes that judge nothing.
        statistics: numbers of the step for the metrics.
    """

    losses: dict[str, Tensor]
    decisions: tuple[Decision, ...] = ()
    statistics: dict[str, float]


class SelectionStep(Protocol):
    """A selection mode: decides, then returns the losses of what it decided on.

    Modes live beside the detector. They leave its weights, their `.grad` and torch's global
    generator as they found them.
    """

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Return the losses to minimise in `step`; `seed` decides all sampling in it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in types that `torch.save` stores without pickling."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
