"""What `RowSelection` asks of an object that finds contributions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from bsgal_train.detector.row_losses import RowLosses
from bsgal_train.selection.judge import RealScore
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["Scores", "Scoring"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Contributions of a step in this process.

    Attributes:
        units: one per unit of the batch; None is no evidence.
        real: of real objects by the same measure, if there is one for them.
    """

    units: list[float | None]
    real: tuple[RealScore, ...] = ()


class Scoring(Protocol):
    """Score the units of a training forward pass; made of a `Setup`."""

    def prepare(self, batch: TrainingBatch) -> Sequence[RealScore]:
        """Do what has to be done before the forward pass; return what it found of real objects."""

    def recording(self) -> AbstractContextManager[Any]:
        """Record inside the block what `score` needs of the forward pass."""

    def score(self, batch: TrainingBatch, rows: Sequence[RowLosses]) -> Scores:
        """Score the recorded pass, inside the block of `recording`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in types that `torch.save` stores without pickling."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
