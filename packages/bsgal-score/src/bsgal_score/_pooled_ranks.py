"""Ranks of units among real ones, by frequency group."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._slots import occurrence


class SortedGroups:
    """Numbers of real units by group, kept sorted while a few of them change.

    Args:
        values: Numbers, NaN for none, (n,).
        groups: The group of each, (n,).
        n_groups: Number of groups.
    """

    def __init__(self, values: NDArray[Any], groups: NDArray[np.int32], n_groups: int) -> None:
        here = ~np.isnan(values)
        self._parts = [np.sort(values[here & (groups == one)]) for one in range(n_groups)]
        self.sizes = np.array([len(part) for part in self._parts])
        """How many numbers a group has, (n_groups,)."""

    def replace(self, old: NDArray[Any], new: NDArray[Any], groups: NDArray[np.int32]) -> None:
        """Take numbers out and put others in; NaN is none, (m,) each."""
        for one in np.unique(groups):
            gone = np.sort(old[(groups == one) & ~np.isnan(old)])
            come = np.sort(new[(groups == one) & ~np.isnan(new)])
            part = self._parts[one]
            part = np.delete(part, np.searchsorted(part, gone) + occurrence(gone))
            self._parts[one] = np.insert(part, np.searchsorted(part, come), come)
            self.sizes[one] = len(self._parts[one])

    def below(self, values: NDArray[Any], ties: float) -> NDArray[np.float64]:
        """Return how many numbers of each group are below values, (n_groups, m).

        Equal ones count `ties`.
        """
        left = np.stack([np.searchsorted(part, values, side="left") for part in self._parts])
        if ties == 0:
            return left.astype(np.float64)
        right = np.stack([np.searchsorted(part, values, side="right") for part in self._parts])
        counts: NDArray[np.float64] = left + ties * (right - left)
        return counts


def split(
    counts: NDArray[np.float64], sizes: NDArray[np.intp], groups: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """Tell a unit's own group from all others.

    Args:
        counts: How many real units of each group count, (n_groups, m).
        sizes: Of how many, (n_groups,).
        groups: The unit's group, (m,).

    Returns:
        Counts and sizes of the own group, then those of the others together, (m,) each.
    """
    own = counts[groups, np.arange(len(groups))]
    n_own = sizes[groups]
    return own, n_own, counts.sum(axis=0) - own, sizes.sum() - n_own
