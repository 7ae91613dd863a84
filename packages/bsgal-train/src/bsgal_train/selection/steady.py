"""Scores that do not depend on which blocks of the backbone a step happens to skip.

`paper` scores in passes of its own, in which the backbone is at rest, and trains with drop-path as
any other run. `batch`, `image`, `instance` and `oracle` score the very pass that is trained on: it
either has drop-path, and equal instances get unequal scores, or it has none. It has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from bsgal_train.data import TrainingSample
from bsgal_train.selection.step import Selected, SelectionStep

__all__ = ["SteadySelection", "steady_backbone"]


class SteadySelection:
    """Run a selection step with nothing in the backbone that is random.

    Args:
        selection: scores the pass that is trained on.
    """

    def __init__(self, selection: SelectionStep) -> None:
        self._selection = selection

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Return what the selection step returns."""
        with steady_backbone(detector):
            return self._selection(detector, samples, step, seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the selection step."""
        return self._selection.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._selection.load_state_dict(state)


@contextmanager
def steady_backbone(detector: Any) -> Iterator[None]:
    """Switch off what is random in the backbone inside the block; gradients flow as before."""
    was_training = detector.backbone.training
    detector.backbone.eval()
    try:
        yield
    finally:
        detector.backbone.train(was_training)
