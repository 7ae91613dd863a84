"""Draw instances by weight, with every category as often as any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import FloatArray, IntArray


class WeightTable:
    """Hold the weights of a pool's instances, ready to be drawn by.

    Building one passes over the pool once. A draw touches the drawn categories only, each in full
    at its first draw and by bisection from then on.

    Args:
        weights: Floating-point, one per position, `(n_instances,)`.
        first: Position of the first instance of each category, `(C,)`, C > 0.
        counts: Number of instances of each category, `(C,)`, all positive.

    Attributes:
        weights: As given, so that the same ones can be known again.

    Raises:
        ValueError: The weights are negative, not finite, or not one per instance.
    """

    def __init__(
        self, weights: npt.NDArray[np.floating[Any]], first: IntArray, counts: IntArray
    ) -> None:
        n_instances = int(counts.sum())
        values = np.asarray(weights)
        if values.shape != (n_instances,):
            raise ValueError(
                f"`instance_weights` must give ({n_instances},) values, one per position of the "
                f"pool, got {values.shape}"
            )
        # NaN fails both comparisons.
        valid = (values >= 0) & (values < np.inf)
        if not valid.all():
            position = int(np.flatnonzero(~valid)[0])
            raise ValueError(
                "`instance_weights` must give finite values of at least 0, got "
                f"{values[position]} at position {position}"
            )
        with np.errstate(over="ignore"):
            totals = np.add.reduceat(values, first, dtype=np.float64)
        if not np.isfinite(totals).all():
            raise ValueError("`instance_weights` must add up to a finite number in each category")
        self.weights = weights
        self._values = values
        self._first = first
        self._counts = counts
        self._alike = bool(values.min() == values.max())
        self._drawable = np.flatnonzero(totals > 0)
        self._cumulative: dict[int, FloatArray] = {}

    def draw(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw n positions with replacement, `(n,)`; none where all weights are 0."""
        if not len(self._drawable):
            return np.zeros(0, dtype=np.int64)
        category = self._drawable[rng.integers(len(self._drawable), size=n)]
        if self._alike:
            return self._first[category] + rng.integers(self._counts[category])
        offsets = [
            self._offset(c, u) for c, u in zip(category.tolist(), rng.random(n), strict=True)
        ]
        return self._first[category] + np.array(offsets, dtype=np.int64)

    def _offset(self, category: int, u: float) -> int:
        """Return which instance of a category is at the share `u`, in [0, 1), of its weight."""
        cumulative = self._cumulative.get(category)
        if cumulative is None:
            first = self._first[category]
            own = self._values[first : first + self._counts[category]]
            cumulative = self._cumulative[category] = np.cumsum(own, dtype=np.float64)
        total = cumulative[-1]
        # To the right of equal sums, so that no instance of weight 0 is hit; where the product is
        # rounded up to the total, the last one that has a weight.
        found = np.searchsorted(cumulative, u * total, side="right")
        return int(min(found, np.searchsorted(cumulative, total)))
