"""Which units of each class were seen last: a bounded number of slots per class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Slots:
    """Dense slots for units, (n_classes, size), of which the oldest is taken next.

    A unit has one slot, however often it was looked at: looks at the same object depend on each
    other and are no sample.

    Args:
        n_classes: Number of classes.
        size: Units kept per class.
    """

    def __init__(self, n_classes: int, size: int) -> None:
        self.hashes: NDArray[np.uint64] = np.zeros((n_classes, size), np.uint64)
        self.seen: NDArray[np.int64] = np.zeros((n_classes, size), np.int64)
        """When a unit was last seen, counted in steps from 1; 0 is an empty slot."""

    def locate(self, hashes: NDArray[np.uint64], classes: NDArray[Any]) -> NDArray[np.intp]:
        """Return the slot of each unit in its class, -1 for none, (m,)."""
        found = (self.hashes[classes] == hashes[:, None]) & (self.seen[classes] > 0)
        return np.where(found.any(axis=1), found.argmax(axis=1), -1)

    def occupy(
        self, hashes: NDArray[np.uint64], classes: NDArray[Any]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Give different units that are seen now slots, their own or their class's oldest.

        Returns:
            Slots, -1 for units of a class that has shown more than its slots at once; and which
            units are new there. Both (m,).
        """
        slots = self.locate(hashes, classes)
        now, known = self.seen.max(initial=0) + 1, slots >= 0
        self.seen[classes[known], slots[known]] = now
        new = np.flatnonzero(~known)
        touched, rows = np.unique(classes[new], return_inverse=True)
        oldest = np.argsort(self.seen[touched], axis=1, kind="stable")
        taken = np.bincount(classes[known], minlength=len(self.seen))[classes[new]]
        number = occurrence(classes[new])
        fits = number + taken < self.seen.shape[1]
        slots[new[fits]] = oldest[rows[fits], number[fits]]
        where = classes[new[fits]], slots[new[fits]]
        self.hashes[where], self.seen[where] = hashes[new[fits]], now
        return slots, ~known & (slots >= 0)


def occurrence(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Return how many equal labels stand before each one, (n,)."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    result = np.empty(len(labels), dtype=np.intp)
    result[order] = np.arange(len(labels)) - starts
    return result
