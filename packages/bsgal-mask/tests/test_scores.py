from __future__ import annotations

import numpy as np
import pytest

from bsgal_mask import confidence, intersection_over_union


def test_a_binary_mask_is_sure_and_an_empty_one_has_no_confidence():
    mask = np.zeros((10, 10), np.float32)
    assert confidence(mask) is None
    mask[2:5, 2:5] = 1
    assert confidence(mask) == 1


def test_confidence_is_the_soft_overlap_with_the_binary_form():
    mask = np.array([[1.0, 0.8, 0.4, 0.0]], np.float32)
    assert confidence(mask) == pytest.approx((1.0 + 0.8) / (1 + 1 + 0.4))


def test_background_does_not_move_the_confidence():
    mask = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    padded = np.pad(mask, 40)
    assert confidence(padded) == pytest.approx(confidence(mask))


def test_a_mask_that_is_faint_everywhere_has_confidence_zero():
    assert confidence(np.full((4, 4), 0.2, np.float32)) == 0


def test_iou_of_known_masks():
    first = np.array([True, True, False, False])
    second = np.array([False, True, True, False])
    assert intersection_over_union(first, second) == pytest.approx(1 / 3)
    assert intersection_over_union(first, ~first) == 0
    assert intersection_over_union(first & ~first, first & ~first) == 1
