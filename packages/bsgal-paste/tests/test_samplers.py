from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import (
    CategoryBalancedSampler,
    CategoryWeightedSampler,
    Cooccurrence,
    FixedSampler,
    FrequencyGroups,
    InstancePool,
    RepeatFactors,
    UniformSampler,
)

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


def weighted(pool: InstancePool, weights, n: int, seed: int = 0) -> np.ndarray:
    sampler = CategoryBalancedSampler(pool, instance_weights=lambda: weights)
    rng = np.random.default_rng(seed)
    return np.concatenate([sampler.sample(rng, NONE) for _ in range(n)])


def test_within_a_category_instances_come_by_weight_and_categories_stay_balanced():
    pool = pool_with_counts(1, 4, 50, 400)
    weights = np.random.default_rng(1).random(455)
    weights[1:5] = [0, 1, 2, 5]
    drawn = weighted(pool, weights, 2000)
    categories = np.array([(pool.category_ids_of(drawn) == c).sum() for c in pool.category_ids])
    assert chi_square(categories) < CHI2_3
    own = np.array([(drawn == position).sum() for position in (2, 3, 4)])
    expected = own.sum() * np.array([1, 2, 5]) / 8
    # 99.9 % quantile of chi-square with 2 degrees of freedom.
    assert ((own - expected) ** 2 / expected).sum() < 13.82
    assert 1 not in drawn


def test_a_category_whose_weights_are_all_0_leaves_its_place_to_the_others():
    pool = pool_with_counts(3, 5, 1, 2, 4)
    drawn = weighted(pool, np.repeat([2.0, 0.0, 1.0, 1.0, 9.0], [3, 5, 1, 2, 4]), 2000)
    counts = np.bincount(pool.category_ids_of(drawn) // 10 - 1, minlength=5)
    assert counts[1] == 0
    assert chi_square(counts[[0, 2, 3, 4]]) < CHI2_3
    assert len(weighted(pool, np.zeros(15), 50)) == 0
    assert len(weighted(InstancePool.from_arrays([], []), np.zeros(0), 50)) == 0


@pytest.mark.parametrize("weights", [None, np.ones(14), np.full(14, 0.3, dtype=np.float32)])
def test_equal_weights_draw_the_same_as_none(weights):
    pool = pool_with_counts(3, 10, 1)
    np.testing.assert_array_equal(weighted(pool, weights, 500), np.concatenate(draws(pool, 500)))


def test_instance_weights_may_change_between_draws():
    pool = pool_with_counts(2, 2)
    given = [np.array([1.0, 0, 0, 0]), np.array([0, 0, 0, 1.0]), None, np.array([0, 1.0, 0, 0])]
    answers = iter(given)
    sampler = CategoryBalancedSampler(
        pool, count_range=(40, 41), instance_weights=lambda: next(answers)
    )
    rng = np.random.default_rng(0)
    drawn = [set(sampler.sample(rng, NONE).tolist()) for _ in given]
    assert drawn == [{0}, {3}, {0, 1, 2, 3}, {1}]


def test_weights_are_looked_through_once_and_not_at_every_draw():
    class Counted:
        looks = 0

        def __array__(self, dtype=None, copy=None):
            self.looks += 1
            return np.linspace(0, 1, 30)

    weights = Counted()
    sampler = CategoryBalancedSampler(pool_with_counts(10, 20), instance_weights=lambda: weights)
    rng = np.random.default_rng(0)
    for _ in range(50):
        sampler.sample(rng, NONE)
    assert weights.looks == 1


@pytest.mark.parametrize("tiny", [5e-324, 1e-310])
def test_the_smallest_weights_hit_no_instance_of_weight_0(tiny):
    drawn = weighted(pool_with_counts(4), np.array([0, tiny, 0, 0]), 200)
    assert set(drawn.tolist()) == {1}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"must give \(2,\) values, one per position of the pool, got \(3,\)"),
        (np.ones((2, 1)), r"got \(2, 1\)"),
        (np.array([1.0, np.nan]), "at least 0, got nan at position 1"),
        (np.array([np.inf, 1.0]), "at least 0, got inf at position 0"),
        (np.array([0.5, -1.0]), "at least 0, got -1.0 at position 1"),
        (np.array([1e308, 1e308]), "add up to a finite number"),
    ],
)
def test_instance_weights_that_make_no_sense_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted(pool_with_counts(2), weights, 1)


def lvis() -> dict:
    """Ten images: 10 in all, 20 in the first four, 30 in the first; 40 in none."""
    holds = {10: range(10), 20: range(4), 30: range(1)}
    pairs = [(image, category) for category, images in holds.items() for image in images]
    return {
        "images": [{"id": i, "width": 9, "height": 9} for i in range(10)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1]}
            for n, (image, category) in enumerate(pairs)
        ],
        "categories": [
            {"id": c, "name": str(c), "frequency": group}
            for c, group in zip((10, 20, 30, 40), "fcrr", strict=True)
        ],
    }


def test_uniform_draws_every_instance_equally_often():
    pool = pool_with_counts(1, 3, 6)
    sampler, rng = UniformSampler(pool), np.random.default_rng(0)
    drawn = np.concatenate([sampler.sample(rng, NONE) for _ in range(500)])
    assert chi_square(np.bincount(drawn, minlength=10)) < CHI2_9
    empty = UniformSampler(InstancePool.from_arrays([], []))
    assert len(empty.sample(rng, NONE)) == 0


def test_weights_steer_the_categories_and_may_change_between_draws():
    pool = pool_with_counts(5, 1, 9)
    weights = np.array([0.0, 1.0, 3.0])
    sampler = CategoryWeightedSampler(pool, lambda categories, target: weights)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([sampler.sample(rng, NONE) for _ in range(800)])
    counts = np.bincount(pool.category_ids_of(drawn) // 10, minlength=4)[1:]
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.1)
    weights[:] = 0
    assert len(sampler.sample(rng, NONE)) == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0], "one per category"), ([1.0, -1.0], "at least 0"), ([1.0, np.nan], "finite")],
)
def test_weights_that_make_no_sense_are_refused(weights, message):
    sampler = CategoryWeightedSampler(pool_with_counts(1, 1), lambda *_: np.array(weights))
    with pytest.raises(ValueError, match=message):
        sampler.sample(np.random.default_rng(0), NONE)


def test_frequency_groups_draw_from_no_other():
    pool = pool_with_counts(2, 2, 2, 2)
    weights = FrequencyGroups.from_annotations(lvis(), ["r"])
    assert weights(pool.category_ids, NONE).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"groups \['x'\]; the annotations have \['c', 'f', 'r'\]"):
        FrequencyGroups.from_annotations(lvis(), ["x"])


def test_repeat_factors_follow_the_published_formula():
    weights = RepeatFactors.from_annotations(lvis(), threshold=0.4)
    ids = np.array([10, 20, 30, 40, 99])
    # sqrt(0.4 / 0.1) = 2 for one image of ten; a category in none counts as in one.
    np.testing.assert_allclose(weights(ids, NONE), [1, 1, 2, 2, 1])
    with pytest.raises(ValueError, match="`threshold` must be positive"):
        RepeatFactors.from_annotations(lvis(), threshold=0)
    with pytest.raises(ValueError, match="got 0 for category 10"):
        RepeatFactors({10: 0})


def test_cooccurrence_weighs_by_shared_images():
    weights = Cooccurrence.from_annotations(lvis())
    ids = np.array([10, 20, 30, 40])
    np.testing.assert_allclose(weights(ids, np.array([10, 10])), [0, 0.4, 0.1, 0])
    np.testing.assert_allclose(weights(ids, np.array([10, 20])), [1, 0.4, 0.35, 0])
    assert weights(ids, NONE).sum() == 0


def test_a_fixed_list_is_pasted_as_given():
    pool = pool_with_counts(3, 4)
    wanted = ["memory-5", "memory-0", "memory-5"]
    sampler = FixedSampler(pool, wanted)
    drawn = sampler.sample(np.random.default_rng(0), NONE)
    assert [pool.instance_id(i) for i in drawn] == wanted
    with pytest.raises(ValueError, match="no instance 'memory-7'"):
        FixedSampler(pool, ["memory-7"])


def test_a_fixed_list_survives_a_caller_that_changes_what_it_got():
    sampler, rng = FixedSampler(pool_with_counts(2), ["memory-1"]), np.random.default_rng(0)
    sampler.sample(rng, NONE)[:] = 0
    assert sampler.sample(rng, NONE).tolist() == [1]


def test_an_instance_is_found_where_matching_put_it():
    pool = pool_with_counts(3, 4)
    named = [(20, pool.category_names[10]), (5, pool.category_names[20])]
    matched = pool.match([{"id": i, "name": name, "synonyms": []} for i, name in named])
    assert matched.instance_id(0) != pool.instance_id(0), "the categories change places"
    for position in range(len(matched)):
        assert matched.position_of(matched.instance_id(position)) == position
