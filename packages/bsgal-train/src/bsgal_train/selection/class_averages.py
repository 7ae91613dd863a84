"""What the objects of each class show on average."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bsgal_train.processes import group as processes

__all__ = ["ClassAverages"]

_MEMORY = 0.999
"""Weight of what was there before, at each batch: what a detector finds hard changes."""

_SHRINKAGE = 8.0
"""How many objects of its own the average over all classes weighs as much as."""


class ClassAverages:
    """Running averages of a number by class, shrunk to that over all classes.

    Args:
        n_classes: number of classes.
    """

    def __init__(self, n_classes: int) -> None:
        self._sums = np.zeros(n_classes)
        self._counts = np.zeros(n_classes)

    def relative(
        self, classes: npt.NDArray[np.int64], values: npt.NDArray[np.floating[Any]]
    ) -> npt.NDArray[np.float64]:
        """Return values minus their class's average, float64 (n,); NaN stays NaN.

        Args:
            classes: class indices, (n,).
            values: (n,).
        """
        n_all = self._counts.sum()
        # The first values are relative to nothing: an offset that all of them share.
        average = self._sums.sum() / n_all if n_all else 0.0
        of_class = (self._sums + _SHRINKAGE * average) / (self._counts + _SHRINKAGE)
        found: npt.NDArray[np.float64] = values - of_class[classes]
        return found

    def add(
        self,
        classes: npt.NDArray[np.int64],
        values: npt.NDArray[np.floating[Any]],
        *,
        is_shared: bool,
    ) -> None:
        """Take a batch's values in; NaN is passed over.

        Args:
            classes: class indices, (n,).
            values: (n,).
            is_shared: all processes give the same values; else each gives its own.
        """
        own = [(classes, values)]
        self._sums *= _MEMORY
        self._counts *= _MEMORY
        for part in [own] if is_shared else processes.gather(own):
            for its_classes, its_values in part:
                known = ~np.isnan(its_values)
                np.add.at(self._sums, its_classes[known], its_values[known])
                np.add.at(self._counts, its_classes[known], 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages."""
        return {
            "sums": torch.from_numpy(self._sums.copy()),
            "counts": torch.from_numpy(self._counts.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._sums = state["sums"].numpy().copy()
        self._counts = state["counts"].numpy().copy()
