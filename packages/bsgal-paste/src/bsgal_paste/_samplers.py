"""Choose which instances to paste. A sampler knows the pool; the paster only takes its choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import FloatArray, IntArray
from bsgal_paste._pool import InstancePool
from bsgal_paste._weight_table import WeightTable

CategoryWeights: TypeAlias = Callable[[IntArray, IntArray], FloatArray]
"""Takes the pool's category ids `(C,)` and the target's category ids `(N,)`, gives one weight of at
least 0 per category of the pool `(C,)`."""
InstanceWeights: TypeAlias = Callable[[], npt.NDArray[np.floating[Any]] | None]
"""Gives one weight of at least 0 per position of the pool, `(n_instances,)`, or None: all alike. An
array that has been given must not be changed; other weights are another array."""


class Sampler(Protocol):
    """Draw positions of a pool for one target image."""

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> IntArray:
        """Draw pool positions, with replacement.

        Args:
            rng: Source of all randomness.
            target_category_ids: Categories of the target's instances, `(N,)`.

        Returns:
            Positions in the pool in the order of pasting, `(n,)`, possibly none.
        """


class CategoryBalancedSampler:
    """Draw a category uniformly among those with instances, then one of its instances.

    This is the rule of the released BSGAL recipe (`cas_random`): a category with three instances
    is drawn as often as one with a thousand.

    Args:
        pool: The pool to draw from. From an empty one nothing is drawn.
        count_range: The number of instances is uniform over this range, upper end exclusive;
            the recipe's (0, 20) draws 0 to 19.
        instance_weights: Asked at every draw, so the weights may follow what training finds out:
            within its category an instance is drawn in proportion to its weight, and a category
            whose weights are all 0 is not drawn. None, as the argument or as the answer, weighs
            all alike; so do equal weights, with the same draws. New weights cost time in
            proportion to the pool, the same array again costs nothing.

    Raises:
        ValueError: `count_range` is empty or negative.
    """

    def __init__(
        self,
        pool: InstancePool,
        *,
        count_range: tuple[int, int] = (0, 20),
        instance_weights: InstanceWeights | None = None,
    ) -> None:
        self._first = pool.first_positions
        self._counts = pool.counts
        self._count_range = checked_count_range(count_range)
        self._ask = instance_weights
        self._table: WeightTable | None = None

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> IntArray:
        """Draw pool positions; `target_category_ids` plays no part.

        Raises:
            ValueError: The weights are negative, not finite, or not one per instance.
        """
        n = int(rng.integers(*self._count_range))
        if not len(self._counts):
            return np.zeros(0, dtype=np.int64)
        weights = None if self._ask is None else self._ask()
        if weights is None:
            category = rng.integers(len(self._counts), size=n)
            return self._first[category] + rng.integers(self._counts[category])
        if self._table is None or self._table.weights is not weights:
            self._table = WeightTable(weights, self._first, self._counts)
        return self._table.draw(rng, n)


class UniformSampler:
    """Draw every instance of the pool equally often, so large categories more often.

    Args:
        pool: The pool to draw from. From an empty one nothing is drawn.
        count_range: Range of the number of instances, upper end exclusive.

    Raises:
        ValueError: `count_range` is empty or negative.
    """

    def __init__(self, pool: InstancePool, *, count_range: tuple[int, int] = (0, 20)) -> None:
        self._n_instances = len(pool)
        self._count_range = checked_count_range(count_range)

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> IntArray:
        """Draw pool positions; `target_category_ids` plays no part."""
        n = int(rng.integers(*self._count_range)) if self._n_instances else 0
        return rng.integers(max(self._n_instances, 1), size=n)


class CategoryWeightedSampler:
    """Draw a category by weight, then one of its instances uniformly.

    The weights are asked for at every draw, so they may follow what training finds out.

    Args:
        pool: The pool to draw from.
        weights: Gives the weights of the pool's categories: `FrequencyGroups`, `RepeatFactors`,
            `Cooccurrence`, or any function of that form. Where all are 0 nothing is drawn.
        count_range: Range of the number of instances, upper end exclusive.

    Raises:
        ValueError: `count_range` is empty or negative.
    """

    def __init__(
        self,
        pool: InstancePool,
        weights: CategoryWeights,
        *,
        count_range: tuple[int, int] = (0, 20),
    ) -> None:
        self._category_ids = pool.category_ids
        self._first = pool.first_positions
        self._counts = pool.counts
        self._weights = weights
        self._count_range = checked_count_range(count_range)

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> IntArray:
        """Draw pool positions.

        Raises:
            ValueError: The weights are negative, not finite, or not one per category.
        """
        n = int(rng.integers(*self._count_range))
        weights = np.asarray(self._weights(self._category_ids, target_category_ids), dtype=float)
        if weights.shape != self._category_ids.shape:
            raise ValueError(
                f"`weights` must give {self._category_ids.shape} values, one per category of the "
                f"pool, got {weights.shape}"
            )
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("`weights` must give finite values of at least 0")
        total = weights.sum()
        if total == 0:
            return np.zeros(0, dtype=np.int64)
        category = rng.choice(len(weights), size=n, p=weights / total)
        return self._first[category] + rng.integers(self._counts[category])


class FixedSampler:
    """Paste the same instances into every image, in the given order.

    Args:
        pool: The pool they are in.
        instance_ids: Which ones; an id may repeat.

    Raises:
        ValueError: The pool has no such instance.
    """

    def __init__(self, pool: InstancePool, instance_ids: Sequence[str]) -> None:
        self._positions = np.array([pool.position_of(i) for i in instance_ids], dtype=np.int64)

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> IntArray:
        """Give the positions; nothing is drawn."""
        return self._positions.copy()


def checked_count_range(count_range: tuple[int, int]) -> tuple[int, int]:
    """Give `count_range` back if it is a non-empty half-open range of counts.

    Raises:
        ValueError: It is not.
    """
    low, high = count_range
    if not 0 <= low < high:
        raise ValueError(
            f"`count_range` must be (low, high) with 0 <= low < high (high exclusive), "
            f"got {count_range}"
        )
    return low, high
