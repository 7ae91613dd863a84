from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsgal_train.data import RepeatFactorSampler, compute_repeat_factors

factor_lists = st.lists(st.floats(1.0, 20.0), min_size=1, max_size=40)


def test_repeat_factors_equal_those_computed_by_hand(annotations):
    # Of 6 images, 5 hold category 42 and 1 holds category 11 (the third); t = 0.9.
    frequent, rare = math.sqrt(0.9 / (5 / 6)), math.sqrt(0.9 / (1 / 6))
    expected = [frequent, frequent, rare, frequent, frequent, 1.0]
    np.testing.assert_allclose(compute_repeat_factors(annotations, 0.9), expected, rtol=1e-12)


def test_no_category_below_the_threshold_repeats_nothing(annotations):
    assert compute_repeat_factors(annotations, 0.1).tolist() == [1.0] * 6
    assert compute_repeat_factors(annotations, 0.0).tolist() == [1.0] * 6


def test_repeat_factors_fall_as_frequency_rises(annotations):
    low, high = (compute_repeat_factors(annotations, t) for t in (0.5, 1.0))
    assert (high >= low).all()
    assert high[2] > high[0] > high[5]


def test_a_threshold_outside_the_unit_interval_is_refused(annotations):
    with pytest.raises(ValueError, match="share of the images"):
        compute_repeat_factors(annotations, 5)


@given(factors=factor_lists, seed=st.integers(0, 1000), start=st.integers(0, 3000))
def test_the_image_at_a_position_does_not_depend_on_where_one_starts(factors, seed, start):
    straight = RepeatFactorSampler(factors, seed)
    if start < 500:
        for position in range(start):
            straight.image_index(position)
    resumed = RepeatFactorSampler(factors, seed)
    positions = range(start, start + 30)
    assert [straight.image_index(p) for p in positions] == [
        resumed.image_index(p) for p in reversed(positions)
    ][::-1]


@given(factors=factor_lists, seed=st.integers(0, 1000), n_epochs=st.integers(1, 5))
def test_an_epoch_holds_an_image_as_often_as_its_factor_rounded(factors, seed, n_epochs):
    sampler = RepeatFactorSampler(factors, seed)
    position = 0
    for epoch in range(n_epochs):
        stop = sampler._first_position(epoch + 1)
        drawn = [sampler.image_index(p) for p in range(position, stop)]
        counts = np.bincount(drawn, minlength=len(factors))
        assert (counts >= np.floor(factors)).all()
        assert (counts <= np.ceil(factors)).all()
        position = stop


def test_images_come_as_often_as_their_factors_on_average():
    factors = np.array([1.0, 1.3, 2.5, 4.75])
    sampler = RepeatFactorSampler(factors, seed=3)
    n_epochs = 400
    n = round(factors.sum() * n_epochs)
    counts = np.bincount([sampler.image_index(p) for p in range(n)], minlength=4)
    np.testing.assert_allclose(counts / n_epochs, factors, atol=0.1)


def test_without_repeats_an_epoch_is_a_permutation():
    sampler = RepeatFactorSampler(np.ones(50), seed=0)
    epochs = [[sampler.image_index(e * 50 + i) for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_another_seed_gives_another_order():
    orders = [
        [RepeatFactorSampler(np.ones(50), seed).image_index(p) for p in range(50)]
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("factors", [[], [[1.0]], [0.5], [float("nan")], [float("inf")]])
def test_impossible_factors_are_refused(factors):
    with pytest.raises(ValueError, match="repeat"):
        RepeatFactorSampler(factors, 0)


def test_a_negative_position_is_refused():
    with pytest.raises(ValueError, match="`position` must be at least 0, got -1"):
        RepeatFactorSampler([1.0], 0).image_index(-1)
