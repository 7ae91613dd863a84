"""What real units were last seen with: what generated ones are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RealWindow:
    """The newest evidence of the real units that were seen last, so many per class.

    A unit has one slot, however often it was looked at: looks at the same object depend on each
    other and are no sample. Slots are dense: (n_classes, size).

    Args:
        n_classes: Number of classes.
        size: Units kept per class.
        n_sources: Number of sources.
    """

    def __init__(self, n_classes: int, size: int, n_sources: int) -> None:
        slots = (n_classes, size)
        self.hashes: NDArray[np.uint64] = np.zeros(slots, np.uint64)
        self.seen: NDArray[np.int64] = np.zeros(slots, np.int64)
        """When a unit was last seen, counted in steps from 1; 0 is an empty slot."""
        self.values: NDArray[np.float32] = np.full((*slots, n_sources), np.nan, np.float32)
        """At the newest look; large is bad, NaN is none."""
        self.means: NDArray[np.float32] = np.zeros((*slots, n_sources), np.float32)
        """Mean normal score over looks."""
        self.counts: NDArray[np.uint8] = np.zeros((*slots, n_sources), np.uint8)
        """Over how many looks; 0 where a source has said nothing."""
        self.within: NDArray[np.float32] = np.full((*slots, n_sources), np.nan, np.float32)
        """Estimate of the variance within a unit, from its newest look; NaN before the second."""

    def locate(self, hashes: NDArray[np.uint64], classes: NDArray[np.int32]) -> NDArray[np.intp]:
        """Return the slot of each unit in its class, -1 for none, (m,)."""
        found = (self.hashes[classes] == hashes[:, None]) & (self.seen[classes] > 0)
        return np.where(found.any(axis=1), found.argmax(axis=1), -1)

    def place(self, hashes: NDArray[np.uint64], classes: NDArray[np.int32]) -> NDArray[np.intp]:
        """Choose slots for different units that were seen now, their own or their class's oldest.

        Returns:
            (m,); -1 for units of a class that has shown more than its slots at once.
        """
        slots = self.locate(hashes, classes)
        new = np.flatnonzero(slots < 0)
        touched, rows = np.unique(classes[new], return_inverse=True)
        known = slots >= 0
        age = self.seen.copy()
        age[classes[known], slots[known]] = np.iinfo(np.int64).max
        oldest = np.argsort(age[touched], axis=1, kind="stable")
        taken = np.bincount(classes[known], minlength=len(age))[classes[new]]
        number = occurrence(classes[new])
        fits = number + taken < age.shape[1]
        slots[new[fits]] = oldest[rows[fits], number[fits]]
        return slots

    def renew(
        self,
        hashes: NDArray[np.uint64],
        classes: NDArray[np.int32],
        slots: NDArray[np.intp],
        values: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Put units and their newest values into slots, and return the values that stood there."""
        where = classes, slots
        old = self.values[where].copy()
        others = (self.hashes[where] != hashes) | (self.seen[where] == 0)
        self.counts[classes[others], slots[others]] = 0
        self.within[classes[others], slots[others]] = np.nan
        self.hashes[where], self.values[where] = hashes, values
        self.seen[where] = self.seen.max(initial=0) + 1
        return old

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


def occurrence(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Return how many equal labels stand before each one, (n,)."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    result = np.empty(len(labels), dtype=np.intp)
    result[order] = np.arange(len(labels)) - starts
    return result
