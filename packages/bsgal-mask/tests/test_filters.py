from __future__ import annotations

import cv2
import numpy as np
import pytest

from bsgal_mask import AreaFilter, BlurFilter, BorderContactFilter, PartsFilter, sharpness

IMAGE = np.zeros((10, 10, 3), np.uint8)


def label(n_pixels):
    mask = np.zeros(100, bool)
    mask[:n_pixels] = True
    return mask.reshape(10, 10)


@pytest.mark.parametrize(("n_pixels", "is_kept"), [(4, False), (5, True), (95, True), (96, False)])
def test_the_area_range_includes_its_ends(n_pixels, is_kept):
    assert (AreaFilter().reason_to_drop(label(n_pixels), IMAGE) is None) is is_kept


def test_the_area_reason_gives_the_numbers():
    reason = AreaFilter().reason_to_drop(label(3), IMAGE)
    assert reason == "area: 0.0300 of the image, 0.05 to 0.95 is required"


def test_border_contact_counts_the_outermost_pixels():
    # 10 of the 36 outermost pixels are covered.
    rule = BorderContactFilter(max_frac=0.27)
    assert rule.reason_to_drop(label(10), IMAGE) == (
        "border-contact: covers 0.2778 of the image's border, at most 0.27 is allowed"
    )
    assert BorderContactFilter(max_frac=0.28).reason_to_drop(label(10), IMAGE) is None
    inner = np.zeros((10, 10), bool)
    inner[1:-1, 1:-1] = True
    assert BorderContactFilter(max_frac=0).reason_to_drop(inner, IMAGE) is None


def test_parts_are_counted_eight_connected():
    mask = np.zeros((10, 10), bool)
    mask[1, 1] = mask[2, 2] = mask[5, 5] = True
    assert PartsFilter(max_parts=2).reason_to_drop(mask, IMAGE) is None
    assert PartsFilter(max_parts=1).reason_to_drop(mask, IMAGE) == (
        "parts: 2 separate parts, 1 to 1 are required"
    )
    assert PartsFilter(min_parts=3).reason_to_drop(mask, IMAGE) == (
        "parts: 2 separate parts, 3 to any number are required"
    )


def test_objects_out_of_focus_are_dropped_with_the_number(drawn):
    image, truth = drawn("disc", side_px=192)
    rng = np.random.default_rng(0)
    textured = np.clip(image + rng.normal(0, 25, (192, 192, 1)), 0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(textured, (0, 0), 6)
    assert BlurFilter().reason_to_drop(truth, textured) is None
    reason = BlurFilter().reason_to_drop(truth, blurred)
    assert reason == f"blur: sharpness {sharpness(blurred, truth):.2f}, at least 2 is required"


def test_sharpness_hardly_depends_on_the_objects_place_and_size(drawn):
    image, truth = drawn("disc", side_px=1024)
    wave = np.sin(np.arange(1024) / 6)
    texture = np.add.outer(wave, wave)[..., None] * 40
    textured = np.clip(image + texture, 0, 255).astype(np.uint8)
    half = cv2.resize(textured, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    moved = np.roll(textured, (30, -20), (0, 1))
    expected = sharpness(textured, truth)
    assert sharpness(moved, np.roll(truth, (30, -20), (0, 1))) == pytest.approx(expected)
    assert sharpness(half, truth[::2, ::2]) == pytest.approx(expected, rel=0.25)


def test_sharpness_of_the_smallest_masks_is_a_number():
    for mask in (np.eye(10, dtype=bool), label(1), label(100)):
        assert sharpness(IMAGE, mask) == 0


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (AreaFilter, {"min_frac": 0.9, "max_frac": 0.1}),
        (AreaFilter, {"max_frac": 1.1}),
        (BorderContactFilter, {"max_frac": -0.1}),
        (BlurFilter, {"min_sharpness": 0}),
        (PartsFilter, {"min_parts": 0}),
        (PartsFilter, {"min_parts": 3, "max_parts": 2}),
    ],
)
def test_impossible_settings_are_refused(rule, settings):
    with pytest.raises(ValueError, match="must"):
        rule(**settings)
