from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import CategoryBalancedSampler, InstancePool

NONE = np.zeros(0, dtype=np.int64)
# 99.9 % quantiles of chi-square with 3, 9 and 19 degrees of freedom.
CHI2_3, CHI2_9, CHI2_19 = 16.27, 27.88, 43.82


def pool_with_counts(*counts: int) -> InstancePool:
    rgba = np.full((2, 2, 4), 255, dtype=np.uint8)
    ids = [10 * (c + 1) for c, count in enumerate(counts) for _ in range(count)]
    return InstancePool.from_arrays([rgba] * len(ids), ids)


def chi_square(observed: np.ndarray) -> float:
    expected = observed.sum() / len(observed)
    return float(((observed - expected) ** 2 / expected).sum())


def draws(pool: InstancePool, n: int = 2000) -> list[np.ndarray]:
    sampler, rng = CategoryBalancedSampler(pool), np.random.default_rng(0)
    return [sampler.sample(rng, NONE) for _ in range(n)]


def test_categories_are_drawn_uniformly_whatever_their_size():
    pool = pool_with_counts(1, 2, 50, 400)
    drawn = pool.category_ids_of(np.concatenate(draws(pool)))
    assert chi_square(np.array([(drawn == c).sum() for c in pool.category_ids])) < CHI2_3


def test_instances_of_a_category_are_drawn_uniformly():
    pool = pool_with_counts(3, 10, 1)
    drawn = np.concatenate(draws(pool))
    positions = pool.positions_of(20)
    assert chi_square(np.array([(drawn == position).sum() for position in positions])) < CHI2_9


def test_the_count_is_uniform_over_0_to_19():
    counts = np.array([len(drawn) for drawn in draws(pool_with_counts(3, 4))])
    assert chi_square(np.bincount(counts, minlength=20)) < CHI2_19
    assert counts.max() == 19


def test_the_check_of_uniformity_can_fail():
    pool = pool_with_counts(1, 2, 50, 400)
    drawn = pool.category_ids_of(np.random.default_rng(0).integers(len(pool), size=2000))
    assert chi_square(np.array([(drawn == c).sum() for c in pool.category_ids])) > CHI2_3


def test_every_drawn_position_exists():
    pool = pool_with_counts(1, 1, 2)
    assert set(np.concatenate(draws(pool, 200)).tolist()) == {0, 1, 2, 3}


def test_an_empty_pool_gives_nothing():
    sampler = CategoryBalancedSampler(InstancePool.from_arrays([], []))
    assert len(sampler.sample(np.random.default_rng(0), NONE)) == 0


@pytest.mark.parametrize("count_range", [(3, 3), (-1, 4), (5, 2)])
def test_a_range_without_counts_is_refused(count_range):
    with pytest.raises(ValueError, match="`count_range` must be"):
        CategoryBalancedSampler(pool_with_counts(1), count_range=count_range)
