from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import (
    AnnotatedImage,
    CopyPaste,
    FixedSampler,
    InstancePool,
    UniformScale,
    tight_boxes_xyxy,
)

IMAGE = np.zeros((8, 10, 3), dtype=np.uint8)
MASKS = np.zeros((1, 8, 10), dtype=bool)
MASKS[0, 2:5, 3:9] = True


def test_boxes_default_to_the_tight_ones_with_an_exclusive_far_edge():
    np.testing.assert_array_equal(AnnotatedImage(IMAGE, MASKS, [4]).boxes_xyxy, [[3, 2, 9, 5]])


def test_the_tight_box_of_an_empty_mask_is_zero():
    np.testing.assert_array_equal(tight_boxes_xyxy(~MASKS & MASKS), [[0, 0, 0, 0]])


def test_tight_boxes_take_masks_that_are_not_contiguous():
    wide = np.zeros((1, 8, 20), dtype=bool)
    wide[:, :, ::2] = MASKS
    np.testing.assert_array_equal(tight_boxes_xyxy(wide[:, :, ::2]), tight_boxes_xyxy(MASKS))


def test_an_image_without_instances_is_legal():
    assert len(AnnotatedImage(IMAGE, MASKS[:0], [])) == 0


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "`image` must be a uint8", (IMAGE.astype(float), MASKS, [1])),
        (TypeError, "`image` must be a uint8", ("photo.jpg", MASKS, [1])),
        (ValueError, r"`image` must have shape \(H, W, 3\)", (IMAGE[..., 0], MASKS, [1])),
        (ValueError, r"`image` must have shape \(H, W, 3\)", (IMAGE[:0], MASKS, [1])),
        (TypeError, "`masks` must be a bool", (IMAGE, MASKS.astype(np.uint8), [1])),
        (ValueError, r"`masks` must have shape \(N, 8, 10\)", (IMAGE, MASKS[0], [1])),
        (ValueError, r"`masks` must have shape \(N, 8, 10\)", (IMAGE, MASKS[:, 1:], [1])),
        (ValueError, r"`masks` \[0\] have no pixel", (IMAGE, ~MASKS & MASKS, [1])),
        (ValueError, r"`category_ids` must have shape \(1,\)", (IMAGE, MASKS, [1, 2])),
        (TypeError, "`category_ids` must be integers", (IMAGE, MASKS, [1.5])),
    ],
)
def test_bad_arrays_are_refused_with_what_came(error, message, arguments):
    with pytest.raises(error, match=message):
        AnnotatedImage(*arguments)


def test_bad_boxes_and_ids_are_refused():
    with pytest.raises(ValueError, match=r"`boxes_xyxy` must have shape \(1, 4\)"):
        AnnotatedImage(IMAGE, MASKS, [1], boxes_xyxy=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="`boxes_xyxy` must be finite"):
        AnnotatedImage(IMAGE, MASKS, [1], boxes_xyxy=[[1, 2, 3, np.nan]])
    with pytest.raises(ValueError, match="`instance_ids` must have 1 entries"):
        AnnotatedImage(IMAGE, MASKS, [1], instance_ids=[])


def test_boxes_without_masks_shrink_to_what_a_paste_leaves(disc):
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    target = AnnotatedImage.from_boxes(image, [[10.5, 10.25, 50, 40], [60, 2, 90, 20]], [3, 4])
    assert target.boxes_only
    pool = InstancePool.from_arrays([np.full((9, 9, 4), 255, dtype=np.uint8)], [1])
    paste = CopyPaste(
        pool, FixedSampler(pool, ["memory-0"]), UniformScale(scale_range=(0.5, 0.5)),
        aspect_range=(1, 1),
    )  # fmt: skip
    drawn = paste.sample_parameters(target.image_hw, target.category_ids, np.random.default_rng(0))
    drawn.centres_xy[:] = (10 / 80, 25 / 60)
    result = paste.apply(target, drawn)
    # The square of 34 px covers the box's left part from top to bottom, columns up to 27.
    np.testing.assert_allclose(result.boxes_xyxy[:2], [[27, 10, 50, 40], [60, 2, 90, 20]])
    assert result.annotated_image().boxes_only
    untouched = CopyPaste(None, source="none")(target, np.random.default_rng(0))
    np.testing.assert_array_equal(untouched.boxes_xyxy, target.boxes_xyxy)


def test_an_image_without_any_box_is_as_good_as_any():
    target = AnnotatedImage.from_boxes(np.zeros((6, 8, 3), dtype=np.uint8), [], [])
    assert len(target) == 0


@pytest.mark.parametrize("box", [[3, 3, 3, 9], [-9, 2, -1, 4], [2, 70, 9, 80], [5, 5, 1, 1]])
def test_a_box_without_area_inside_the_image_is_refused(box):
    with pytest.raises(ValueError, match=r"`boxes_xyxy\[1\]` .* has no area inside the image"):
        AnnotatedImage.from_boxes(np.zeros((6, 8, 3), np.uint8), [[0, 0, 2, 2], box], [1, 1])


def test_a_caller_without_masks_is_told_what_to_use():
    with pytest.raises(TypeError, match=r"use `AnnotatedImage\.from_boxes`"):
        AnnotatedImage(np.zeros((6, 8, 3), dtype=np.uint8), None, [])


def test_a_box_stands_for_every_pixel_that_it_touches():
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    target = AnnotatedImage.from_boxes(
        image, [[10.5, 8.25, 50.5, 40.75], [-3, 50, 9.5, 99]], [3, 4]
    )
    expected = np.zeros((2, 60, 80), dtype=bool)
    expected[0, 8:41, 10:51] = True
    expected[1, 50:60, :10] = True
    np.testing.assert_array_equal(target.masks, expected)
