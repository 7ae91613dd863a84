"""What real units were last seen with: what generated ones are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._slots import Slots


class RealWindow(Slots):
    """The newest evidence of the real units that were seen last, so many per class.

    Args:
        n_classes: Number of classes.
        size: Units kept per class.
        n_sources: Number of sources.
    """

    def __init__(self, n_classes: int, size: int, n_sources: int) -> None:
        super().__init__(n_classes, size)
        shape = (n_classes, size, n_sources)
        self.values: NDArray[np.float32] = np.full(shape, np.nan, np.float32)
        """At the newest look; large is bad, NaN is none."""
        self.means: NDArray[np.float32] = np.zeros(shape, np.float32)
        """Mean normal score over looks."""
        self.counts: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        """Over how many looks; 0 where a source has said nothing."""
        self.within: NDArray[np.float32] = np.full(shape, np.nan, np.float32)
        """Estimate of the variance within a unit, from its newest look; NaN before the second."""

    def enter(
        self, hashes: NDArray[np.uint64], classes: NDArray[np.int32], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Remember the newest values of different units.

        Returns:
            Their slots, -1 for none, (m,); and the values that stood there, (m, n_sources).
        """
        slots, new = self.occupy(hashes, classes)
        where = classes[new], slots[new]
        self.counts[where], self.within[where] = 0, np.nan
        here = slots >= 0
        old = np.full_like(values, np.nan)
        old[here] = self.values[classes[here], slots[here]]
        self.values[classes[here], slots[here]] = values[here]
        return slots, old

    def write(
        self,
        classes: NDArray[np.int32],
        slots: NDArray[np.intp],
        means: NDArray[np.float32],
        counts: NDArray[np.uint8],
        within: NDArray[np.float64],
    ) -> None:
        """Write the evidence about units; where `within` is NaN, the older estimate stays."""
        where = classes, slots
        self.means[where], self.counts[where] = means, counts
        self.within[where] = np.where(np.isnan(within), self.within[where], within)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name; they are the window's own."""
        return dict(vars(self))

    def load_columns(self, columns: dict[str, NDArray[Any]]) -> None:
        """Take a copy of arrays that `columns` returned."""
        for name, own in vars(self).items():
            own[...] = columns[name]
