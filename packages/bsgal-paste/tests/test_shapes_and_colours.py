"""What rotation, colour jitter, position and order do to pasted instances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bsgal_paste import (
    AnnotatedImage,
    AnnotationError,
    ColourJitter,
    CopyPaste,
    FixedSampler,
    InstancePool,
    UniformScale,
    VisibleShare,
)
from bsgal_paste._colour import change_colours
from bsgal_paste._cutout import reshape_weighted, weighted_by_alpha

SCALE = UniformScale(scale_range=(0.2, 0.6))


def blank(height: int = 80, width: int = 100) -> AnnotatedImage:
    image = np.full((height, width, 3), 40, dtype=np.uint8)
    return AnnotatedImage(image, np.zeros((0, height, width), dtype=bool), [])


def repeated(pool: InstancePool, n: int, **options) -> CopyPaste:
    return CopyPaste(pool, FixedSampler(pool, ["memory-0"] * n), SCALE, **options)


def corner() -> np.ndarray:
    """A square, opaque, its top left quarter white and the rest black."""
    rgba = np.zeros((30, 30, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[:15, :15, :3] = 255
    return rgba


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_turn_is_counter_clockwise(angle, turns):
    turned = reshape_weighted(weighted_by_alpha(corner()), 30, 30, angle_deg=angle)
    assert np.abs(np.array(turned.shape[:2]) - 30).max() <= 1
    expected = np.rot90(corner(), turns)
    middles = turned[7::15, 7::15][:2, :2, 0] > 128
    np.testing.assert_array_equal(middles, expected[7::15, 7::15, 0] > 128)


def test_mirroring_comes_after_turning():
    both = reshape_weighted(weighted_by_alpha(corner()), 30, 30, angle_deg=90, flip=True)
    turned = reshape_weighted(weighted_by_alpha(corner()), 30, 30, angle_deg=90)
    np.testing.assert_array_equal(both, turned[:, ::-1])


@pytest.mark.parametrize("angle", [-30, 7, 45])
def test_a_turned_object_keeps_its_area_and_fills_its_box(angle, disc):
    rgba = disc(60, 40, (200, 100, 50))
    turned = reshape_weighted(weighted_by_alpha(rgba), 60, 90, angle_deg=angle)
    straight = reshape_weighted(weighted_by_alpha(rgba), 60, 90)
    assert turned[..., 3].sum(dtype=int) == pytest.approx(straight[..., 3].sum(dtype=int), rel=0.01)
    seen = turned[..., 3] > 0
    assert seen.any(axis=0)[[0, -1]].all()
    assert seen.any(axis=1)[[0, -1]].all()


@pytest.mark.parametrize("angle", [-90, -40, 0, 15, 45, 90])
def test_the_box_has_the_area_of_the_scale_whatever_the_turn(angle):
    # Long and thin, so that its box grows most when it is turned.
    pool = InstancePool.from_arrays([np.full((30, 150, 4), 255, dtype=np.uint8)], [1])
    target = blank(400, 500)
    for scale in (0.2, 0.35):
        paste = CopyPaste(
            pool, FixedSampler(pool, ["memory-0"]), UniformScale(scale_range=(scale, scale)),
            position="inside", rotation_range_deg=(angle, angle),
        )  # fmt: skip
        result = paste(target, np.random.default_rng(0))
        # Turning softens the rim, so that the box of the label mask is a little smaller.
        left, top, right, bottom = result.boxes_xyxy[0]
        area = scale**2 * 400 * 500
        assert (right - left) * (bottom - top) < 1.01 * area
        assert (right - left + 4) * (bottom - top + 4) > 0.99 * area


def test_a_turned_object_must_have_room_for_its_box():
    pool = InstancePool.from_arrays([np.full((30, 150, 4), 255, dtype=np.uint8)], [1])
    paste = CopyPaste(
        pool, FixedSampler(pool, ["memory-0"]), UniformScale(scale_range=(0.6, 0.6)),
        aspect_range=(1, 1), rotation_range_deg=(90, 90),
    )  # fmt: skip
    # 134 px of the 120 that there are, standing; lying it would fit.
    (gone,) = paste(blank(120, 400), np.random.default_rng(0)).removed
    assert gone.reason == "too_large"


class Three:
    """Three donors, none of which can be read."""

    def sample(self, rng, target_category_ids):
        return int(rng.integers(1000))

    def read(self, index):
        raise AnnotationError("not read in this test")


OPTIONS = {
    "angles_deg": {"rotation_range_deg": (-30, 30)},
    "colours": {"colour_jitter": ColourJitter()},
    "donor": {"source": "both", "donors": Three()},
}


@pytest.mark.parametrize("switched", OPTIONS)
def test_switching_an_option_on_leaves_all_other_draws_as_they_are(pool, switched):
    others = {name: option for name, option in OPTIONS.items() if name != switched}
    for given in ({}, *([name] for name in others), list(others)):
        plain = {key: value for name in given for key, value in OPTIONS[name].items()}
        rngs = np.random.default_rng(3), np.random.default_rng(3)
        # Twice, as the generator may be shared by several pastes.
        for _ in range(2):
            before, after = (
                repeated(pool, 20, **options).sample_parameters((80, 100), np.zeros(0, int), rng)
                for options, rng in zip((plain, plain | OPTIONS[switched]), rngs, strict=True)
            )
            assert getattr(before, switched) is None
            assert getattr(after, switched) is not None
            for field in dataclasses.fields(before):
                if field.name != switched:
                    was, value = getattr(before, field.name), getattr(after, field.name)
                    np.testing.assert_array_equal(was, value, err_msg=field.name)


def test_angles_lie_in_the_range(pool):
    drawn = repeated(pool, 200, rotation_range_deg=(-30, 30)).sample_parameters(
        (80, 100), np.zeros(0, dtype=int), np.random.default_rng(1)
    )
    assert -30 <= drawn.angles_deg.min() < -25 < 25 < drawn.angles_deg.max() <= 30


def test_colours_change_by_the_given_factors():
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (100, 60, 20, 255)
    rgba[2:] = (10, 200, 30, 0)
    same = change_colours(rgba, np.array([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(same, rgba)
    brighter = change_colours(rgba, np.array([1.5, 1.0, 1.0, 0.0]))
    assert brighter[0, 0].tolist() == [150, 90, 30, 255]
    # 0.299 x 100 + 0.587 x 60 + 0.114 x 20 = 67.4 is its grey; transparent pixels do not count.
    grey = change_colours(rgba, np.array([1.0, 1.0, 0.0, 0.0]))
    assert grey[0, 0].tolist() == [67, 67, 67, 255]
    flat = change_colours(rgba, np.array([1.0, 0.5, 1.0, 0.0]))
    assert flat[0, 0].tolist() == [84, 64, 44, 255]
    # A third of a turn takes red to green, green to blue, blue to red.
    turned = change_colours(rgba, np.array([1.0, 1.0, 1.0, 1 / 3]))
    assert np.abs(turned[0, 0].astype(int) - (20, 100, 60, 255)).max() <= 1


def test_colour_jitter_reaches_the_share_that_it_should():
    drawn = ColourJitter(prob=0.3).sample(5000, np.random.default_rng(0))
    changed = (drawn != (1, 1, 1, 0)).any(axis=1)
    assert changed.mean() == pytest.approx(0.3, abs=0.03)
    assert np.abs(drawn[:, :3] - 1).max() <= 0.2
    assert np.abs(drawn[:, 3]).max() <= 0.2


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue", "prob"])
def test_a_strength_out_of_range_is_refused(field):
    with pytest.raises(ValueError, match=f"`{field}` must be in"):
        ColourJitter(**{field: 1.5})


def test_inside_keeps_every_box_inside_and_reaches_every_side(pool):
    square = InstancePool.from_arrays([np.full((20, 20, 4), 255, dtype=np.uint8)], [1])
    paste = repeated(square, 1, position="inside")
    boxes = []
    for seed in range(150):
        result = paste(blank(), np.random.default_rng(seed))
        assert result.visible_frac.tolist() == [1.0]
        boxes.append(result.boxes_xyxy[0])
    left, top, right, bottom = np.array(boxes).T
    assert min(left.min(), top.min()) <= 1
    assert right.max() >= 99
    assert bottom.max() >= 79


def test_uniform_places_objects_across_the_border():
    square = InstancePool.from_arrays([np.full((20, 20, 4), 255, dtype=np.uint8)], [1])
    paste = repeated(square, 1)
    shares = [paste(blank(), np.random.default_rng(s)).visible_frac[0] for s in range(40)]
    assert min(shares) < 0.7


def test_large_first_leaves_the_smallest_on_top():
    square = InstancePool.from_arrays([np.full((20, 20, 4), 255, dtype=np.uint8)], [1])
    for seed in range(20):
        result = repeated(square, 6, order="large_first")(blank(), np.random.default_rng(seed))
        full = result.areas / result.visible_frac
        assert (np.diff(full) <= 1e-6).all()


@pytest.mark.parametrize("side", [8, 100, 1000])
def test_the_visible_share_means_the_same_at_every_size(side):
    # An object loses three quarters of its area, whatever that is in pixels.
    masks = np.zeros((1, side * 2, side * 2), dtype=bool)
    masks[0, :side, :side] = True
    target = AnnotatedImage(np.zeros((side * 2, side * 2, 3), dtype=np.uint8), masks, [5])
    pool = InstancePool.from_arrays([np.full((8, 8, 4), 255, dtype=np.uint8)], [1])
    paste = repeated(pool, 1, aspect_range=(1, 1))
    drawn = paste.sample_parameters(target.image_hw, target.category_ids, np.random.default_rng(0))
    drawn.scales[:] = 0.5
    drawn.centres_xy[:] = (0.25, 0.25 - 0.25 / 2)
    for min_visible_frac, kept in ((0.24, True), (0.26, False)):
        paste.visibility = VisibleShare(min_visible_frac=min_visible_frac)
        result = paste.apply(target, drawn)
        assert (5 in result.category_ids) == kept
        share = [*result.visible_frac[:1], *(gone.visible_frac for gone in result.removed)]
        assert share[-1] == 0.25 or share[0] == 0.25
