"""`none` and `paste_all`: the two controls, which judge nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bsgal_train.data import TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Precision
from bsgal_train.selection.step import Selected

__all__ = ["AlwaysPaste", "NeverPaste"]


class _Stateless:
    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept nothing: there is no state."""


class NeverPaste(_Stateless):
    """Train on the images as they are annotated."""

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Return the losses on the un-pasted images."""
        inputs = [sample.original for sample in samples]
        return Selected(
            losses=training_losses(detector, inputs, self._precision, seed, _keys(samples)),
            statistics={},
        )


class AlwaysPaste(_Stateless):
    """Train on everything that was pasted, good or bad."""

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Return the losses on the pasted images."""
        inputs = [sample.pasted for sample in samples]
        return Selected(
            losses=training_losses(detector, inputs, self._precision, seed, _keys(samples)),
            statistics={"n_pasted": processes.total(sum(len(sample.pastes) for sample in samples))},
        )


def _keys(samples: Sequence[TrainingSample]) -> list[int]:
    return [sample.position for sample in samples]
