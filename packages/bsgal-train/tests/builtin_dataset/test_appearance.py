from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bsgal_train.builtin_dataset.appearance import (
    Appearance,
    AppearanceRanges,
    render_object,
    sample_appearance,
)

PLAIN = Appearance(
    rotation_deg=0.0,
    flip=False,
    stretch=1.0,
    corner_shifts=((0.0, 0.0),) * 4,
    hue_deg=0.0,
    saturation=1.0,
    value=1.0,
    shading=0.0,
    shading_direction_deg=0.0,
    blur_sigma_px=0.0,
)


def two_colours() -> np.ndarray:
    """A 128x64 (wide, high) object, red on the left and green on the right."""
    sprite = np.zeros((64, 128, 4), dtype=np.uint8)
    sprite[:, :64, 0] = 200
    sprite[:, 64:, 1] = 200
    sprite[..., 3] = 255
    return sprite


def half(sprite: np.ndarray) -> np.ndarray:
    return sprite[::2, ::2]


def test_plain_appearance_at_half_size_gives_every_other_pixel() -> None:
    np.testing.assert_allclose(render_object(two_colours(), PLAIN, 64), half(two_colours()), atol=1)


@pytest.mark.parametrize("side_px", [8, 23, 64, 150])
def test_longest_side_is_the_one_asked_for(side_px: int) -> None:
    rendered = render_object(two_colours(), PLAIN, side_px)
    assert rendered.shape[1] == side_px
    assert abs(rendered.shape[0] - side_px / 2) <= 1


def test_flip_swaps_left_and_right() -> None:
    flipped = render_object(two_colours(), dataclasses.replace(PLAIN, flip=True), 64)
    np.testing.assert_allclose(flipped, half(two_colours()[:, ::-1]), atol=1)


def test_quarter_turn_is_counter_clockwise() -> None:
    turned = render_object(two_colours(), dataclasses.replace(PLAIN, rotation_deg=90.0), 64)
    np.testing.assert_allclose(turned, half(np.rot90(two_colours())), atol=1)


def test_transparent_pixels_do_not_bleed_their_colour() -> None:
    sprite = np.zeros((60, 60, 4), dtype=np.uint8)
    sprite[..., 1] = 255
    sprite[10:50, 10:50] = (200, 0, 0, 255)
    rendered = render_object(sprite, dataclasses.replace(PLAIN, rotation_deg=30.0), 40)
    assert rendered[rendered[..., 3] > 8][:, 1].max() <= 1


def test_saturation_zero_leaves_grey_of_the_same_brightness() -> None:
    grey = render_object(two_colours(), dataclasses.replace(PLAIN, saturation=0.0), 64)
    np.testing.assert_allclose(grey[5, 5, :3], [round(0.299 * 200)] * 3, atol=1)
    np.testing.assert_allclose(grey[5, 60, :3], [round(0.587 * 200)] * 3, atol=1)


def test_hue_turned_by_a_third_maps_red_to_green() -> None:
    sprite = np.full((20, 20, 4), 255, dtype=np.uint8)
    sprite[..., :3] = (180, 60, 60)
    turned = render_object(sprite, dataclasses.replace(PLAIN, hue_deg=120.0), 20)[10, 10, :3]
    assert turned[1] > turned[0] + 80
    assert turned[1] > turned[2] + 80


def test_shading_is_brightest_where_the_light_comes_from() -> None:
    sprite = np.full((40, 40, 4), 255, dtype=np.uint8)
    sprite[..., :3] = 120
    lit = dataclasses.replace(PLAIN, shading=0.4, shading_direction_deg=90.0)
    column = render_object(sprite, lit, 40)[:, 20, 0].astype(int)
    assert column[0] == pytest.approx(120 * 0.6, abs=1)
    assert column[-1] == pytest.approx(120 * 1.2, abs=1)
    assert (np.diff(column) >= 0).all()


def test_blur_softens_the_edge_and_keeps_the_colour() -> None:
    sprite = np.full((40, 40, 4), 255, dtype=np.uint8)
    sprite[..., :3] = (90, 140, 30)
    blurred = render_object(sprite, dataclasses.replace(PLAIN, blur_sigma_px=1.5), 40)
    alpha = blurred[..., 3]
    assert 0 < alpha[alpha.shape[0] // 2, 0] < 128
    np.testing.assert_allclose(
        blurred[alpha > 20][:, :3], [[90, 140, 30]] * (alpha > 20).sum(), atol=2
    )


def test_result_is_cropped_tightly() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        alpha = render_object(two_colours(), sample_appearance(rng), 37)[..., 3]
        for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert edge.any()


def test_sample_stays_in_its_ranges_and_repeats_with_its_seed() -> None:
    ranges = AppearanceRanges(rotation_deg_range=(5.0, 6.0), flip_prob=0.0)
    drawn = sample_appearance(np.random.default_rng(0), ranges)
    assert 5.0 <= drawn.rotation_deg <= 6.0
    assert not drawn.flip
    assert drawn == sample_appearance(np.random.default_rng(0), ranges)


def test_sprite_without_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 4\), got uint8 \(8, 8, 3\)"):
        render_object(np.zeros((8, 8, 3), dtype=np.uint8), PLAIN, 20)


def test_too_small_a_side_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4, got 2"):
        render_object(two_colours(), PLAIN, 2)
