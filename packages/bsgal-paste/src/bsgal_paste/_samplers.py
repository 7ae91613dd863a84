"""Choose which instances to paste. A sampler knows the pool; the paster only takes its choice."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from bsgal_paste._arrays import IntArray
from bsgal_paste._pool import InstancePool


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
    """Draw a category uniformly among those with instances, then one of its instances uniformly.

    This is the rule of the released BSGAL recipe (`cas_random`): a category with three instances
    is drawn as often as one with a thousand.

    Args:
        pool: The pool to draw from. From an empty one nothing is drawn.
        count_range: The number of instances is uniform over this range, upper end exclusive;
            the recipe's (0, 20) draws 0 to 19.

    Raises:
        ValueError: `count_range` is empty or negative.
    """

    def __init__(self, pool: InstancePool, *, count_range: tuple[int, int] = (0, 20)) -> None:
        self._first = pool.first_positions
        self._counts = pool.counts
        self._count_range = checked_count_range(count_range)

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> IntArray:
        """Draw pool positions; `target_category_ids` plays no part."""
        n = int(rng.integers(*self._count_range))
        if not len(self._counts):
            return np.zeros(0, dtype=np.int64)
        category = rng.integers(len(self._counts), size=n)
        return self._first[category] + rng.integers(self._counts[category])


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
