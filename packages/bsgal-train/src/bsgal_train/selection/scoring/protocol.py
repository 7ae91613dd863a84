"""What `RowSelection` asks of an object that finds contributions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from bsgal_train.data.samples import TrainingSample
from bsgal_train.detector.row_losses import RowLosses
from bsgal_train.selection.judge import Unit

__all__ = ["Scores", "Scoring"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Contributions of a step in this process.

    Attributes:
        units: one per unit in the order of the samples and their pastes; None is no evidence.
        real: of units of real data by the same measure, if there is one for them.
    """

    units: list[float | None]
    real: tuple[Unit, ...] = ()


class Scoring(Protocol):
    """Score the units of a training forward pass."""

    def prepare(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Sequence[Unit]:
        """Do what has to be done before the forward pass; return what it found of real units."""

    def recording(self) -> AbstractContextManager[Any]:
        """Record inside the block what `score` needs of the forward pass."""

    def score(self, samples: Sequence[TrainingSample], rows: Sequence[RowLosses]) -> Scores:
        """Score the recorded pass, inside the block of `recording`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in types that `torch.save` stores without pickling."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
