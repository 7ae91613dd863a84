from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsgal_train.data import CropWindow, RandomCrop

sides = st.integers(1, 300)


@given(
    image_hw=st.tuples(sides, sides),
    crop_px=st.integers(1, 200),
    low=st.floats(0.1, 2.0),
    factor=st.floats(1.0, 3.0),
    seed=st.integers(0, 2**32),
)
def test_window_lies_inside_the_resized_image_and_the_crop(image_hw, crop_px, low, factor, seed):
    crop = RandomCrop(crop_px=crop_px, scale_range=(low, low * factor))
    window = crop.sample(image_hw, np.random.default_rng(seed))
    for start, side, whole in zip(
        (window.top_px, window.left_px), window.window_hw, window.resized_hw, strict=True
    ):
        assert 1 <= side <= crop_px
        assert 0 <= start <= start + side <= whole
    shown = window.apply(np.zeros((*image_hw, 3), dtype=np.uint8))
    assert shown.shape == (*window.window_hw, 3)


def test_window_reaches_every_edge():
    crop = RandomCrop(crop_px=10, scale_range=(1.5, 1.5))
    rng = np.random.default_rng(0)
    windows = [crop.sample((12, 12), rng) for _ in range(500)]
    assert {w.top_px for w in windows} == set(range(6))
    assert {w.left_px for w in windows} == set(range(6))
    assert {w.flip for w in windows} == {True, False}


def test_scale_one_without_flip_is_the_identity():
    crop = RandomCrop(crop_px=20, scale_range=(1.0, 1.0), flip_prob=0.0)
    image = np.random.default_rng(0).integers(0, 256, (20, 15, 3), dtype=np.uint8)
    window = crop.sample((20, 15), np.random.default_rng(1))
    np.testing.assert_array_equal(window.apply(image), image)


def test_scale_range_covers_the_longer_side():
    crop = RandomCrop(crop_px=100, scale_range=(0.5, 2.0))
    rng = np.random.default_rng(0)
    longer = [crop.sample((30, 60), rng).resized_hw[1] for _ in range(300)]
    assert 50 <= min(longer) < 55
    assert 195 < max(longer) <= 200


def test_flip_mirrors_columns():
    image = np.arange(12, dtype=np.uint8).reshape(2, 6)
    window = CropWindow((2, 6), 0, 1, (2, 3), flip=True)
    np.testing.assert_array_equal(window.apply(image), [[3, 2, 1], [9, 8, 7]])


@pytest.mark.parametrize(
    "arguments", [{"crop_px": 0}, {"scale_range": (1.0, 0.5)}, {"flip_prob": 1.5}]
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="need `crop_px` >= 1"):
        RandomCrop(**arguments)
