from __future__ import annotations

import numpy as np
import pytest

from bsgal_mask import AreaFilter, BorderContactFilter, PartsFilter


def label(n_pixels):
    mask = np.zeros(100, bool)
    mask[:n_pixels] = True
    return mask.reshape(10, 10)


@pytest.mark.parametrize(("n_pixels", "is_kept"), [(4, False), (5, True), (95, True), (96, False)])
def test_the_area_range_includes_its_ends(n_pixels, is_kept):
    assert (AreaFilter().reason_to_drop(label(n_pixels)) is None) is is_kept


def test_the_area_reason_gives_the_numbers():
    reason = AreaFilter().reason_to_drop(label(3))
    assert reason == "area: 0.0300 of the image, 0.05 to 0.95 is required"


def test_border_contact_counts_the_outermost_pixels():
    # 10 of the 36 outermost pixels are covered.
    rule = BorderContactFilter(max_frac=0.27)
    assert rule.reason_to_drop(label(10)) == (
        "border-contact: covers 0.2778 of the image's border, at most 0.27 is allowed"
    )
    assert BorderContactFilter(max_frac=0.28).reason_to_drop(label(10)) is None
    inner = np.zeros((10, 10), bool)
    inner[1:-1, 1:-1] = True
    assert BorderContactFilter(max_frac=0).reason_to_drop(inner) is None


def test_parts_are_counted_eight_connected():
    mask = np.zeros((10, 10), bool)
    mask[1, 1] = mask[2, 2] = mask[5, 5] = True
    assert PartsFilter(max_parts=2).reason_to_drop(mask) is None
    assert PartsFilter(max_parts=1).reason_to_drop(mask) == (
        "parts: 2 separate parts, 1 to 1 are required"
    )
    assert PartsFilter(min_parts=3).reason_to_drop(mask) == (
        "parts: 2 separate parts, 3 to any number are required"
    )


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (AreaFilter, {"min_frac": 0.9, "max_frac": 0.1}),
        (AreaFilter, {"max_frac": 1.1}),
        (BorderContactFilter, {"max_frac": -0.1}),
        (PartsFilter, {"min_parts": 0}),
        (PartsFilter, {"min_parts": 3, "max_parts": 2}),
    ],
)
def test_impossible_settings_are_refused(rule, settings):
    with pytest.raises(ValueError, match="must"):
        rule(**settings)
