from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsgal_mask import BorderSegmenter, intersection_over_union


@pytest.mark.parametrize("shape", ["disc", "ring", "two parts"])
def test_drawn_shapes_are_found_almost_exactly(drawn, shape):
    image, truth = drawn(shape)
    (mask,) = BorderSegmenter().segment([image], ["ball"])
    assert mask.dtype == np.float32
    assert intersection_over_union(mask >= 0.5, truth) > 0.95


def test_a_rings_hole_survives(drawn):
    image, _ = drawn("ring")
    (mask,) = BorderSegmenter().segment([image], ["ring"])
    centre = image.shape[0] // 2
    assert mask[centre - 5 : centre + 5, centre - 5 : centre + 5].max() < 0.5


def test_an_enclosed_region_of_another_colour_is_part_of_the_object(drawn):
    image, _ = drawn("ring")
    yy, xx = np.indices(image.shape[:2])
    inside = (yy - 48) ** 2 + (xx - 48) ** 2 < 13**2
    face = image.copy()
    face[inside] = np.clip(face[inside].astype(int) + 14, 0, 255)
    (mask,) = BorderSegmenter().segment([face], ["clock"])
    assert mask[inside].min() > 0.5


def test_an_object_that_touches_the_border_is_not_taken_for_background(drawn):
    image, truth = drawn("disc")
    image, truth = image[:, 30:], truth[:, 30:]
    assert truth[:, 0].any()
    (mask,) = BorderSegmenter().segment([image], ["ball"])
    assert intersection_over_union(mask >= 0.5, truth) > 0.9


def test_the_edge_is_soft_and_can_be_hard(drawn):
    image, _ = drawn("disc")
    (soft,) = BorderSegmenter().segment([image], ["ball"])
    hard_edged = BorderSegmenter(edge_sigma_px=0, edge_from_colours=False)
    (hard,) = hard_edged.segment([image], ["ball"])
    assert ((soft > 0) & (soft < 1)).any()
    assert set(np.unique(hard)) == {0, 1}


def test_equal_images_give_equal_masks_in_any_batch(drawn):
    images = [drawn("disc")[0], drawn("ring", side_px=64)[0], drawn("disc")[0]]
    batched = BorderSegmenter().segment(images, ["a", "b", "c"])
    alone = [BorderSegmenter().segment([image], ["x"])[0] for image in images]
    for first, second in zip(batched, alone, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(batched[0], batched[2])


def test_a_plain_image_holds_nothing():
    (mask,) = BorderSegmenter().segment([np.full((64, 48, 3), 200, np.uint8)], ["nothing"])
    assert mask.shape == (64, 48)
    assert not mask.any()


def test_a_large_image_gets_a_mask_of_its_own_size(drawn):
    image, truth = drawn("disc", side_px=160)
    (mask,) = BorderSegmenter(max_side_px=64).segment([image], ["ball"])
    assert mask.shape == truth.shape
    assert intersection_over_union(mask >= 0.5, truth) > 0.9


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_any_image_gives_a_mask_in_range(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    (mask,) = BorderSegmenter(grabcut_iterations=1).segment([image], ["noise"])
    assert mask.shape == (height, width)
    assert mask.dtype == np.float32
    assert mask.min() >= 0
    assert mask.max() <= 1


def test_images_are_not_changed(drawn):
    image, _ = drawn("disc")
    before = image.copy()
    BorderSegmenter().segment([image], ["ball"])
    np.testing.assert_array_equal(image, before)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"`images\[0\]` must be uint8 RGB .* float64 \(4, 4\)"):
        BorderSegmenter().segment([np.zeros((4, 4))], ["x"])
    with pytest.raises(ValueError, match="one name per image, got 0 names for 1 images"):
        BorderSegmenter().segment([np.zeros((4, 4, 3), np.uint8)], [])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("border_frac", 0.5), ("n_colours", 0), ("min_colour_frac", 1.0), ("min_distance", 7.0),
        ("grabcut_iterations", -1), ("edge_sigma_px", -1.0), ("hole_distance", -1.0),
        ("max_side_px", 8),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        BorderSegmenter(**{setting: value})
