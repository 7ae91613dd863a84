from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from bsgal_train.annotations import ImageRecord, InstanceRecord
from bsgal_train.data import CropWindow
from bsgal_train.data.masks import crop_masks

HEIGHT, WIDTH = 24, 32


def record(*segmentations) -> ImageRecord:
    instances = tuple(
        InstanceRecord(i, 0, (0.0, 0.0, 1.0, 1.0), segmentation)
        for i, segmentation in enumerate(segmentations)
    )
    return ImageRecord(1, Path("1.png"), HEIGHT, WIDTH, instances)


def whole(flip: bool = False) -> CropWindow:
    return CropWindow((HEIGHT, WIDTH), 0, 0, (HEIGHT, WIDTH), flip)


def rle(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


# Eighths of a pixel, which shifts leave exact: pycocotools rounds to fifths, and a coordinate that
# is a hair off half-way could fall on either side.
coordinates = st.integers(-5 * 8, 40 * 8).map(lambda eighths: eighths / 8)
polygons = st.lists(coordinates, min_size=3, max_size=8).flatmap(
    lambda xs: st.lists(coordinates, min_size=len(xs), max_size=len(xs)).map(
        lambda ys: [float(v) for pair in zip(xs, ys, strict=True) for v in pair]
    )
)


@given(polygon=polygons, top=st.integers(0, 20), left=st.integers(0, 28), flip=st.booleans())
def test_mask_of_a_crop_is_the_crop_of_the_mask(polygon, top, left, flip):
    window = CropWindow((HEIGHT, WIDTH), top, left, (HEIGHT - top, WIDTH - left), flip)
    # Drawn on a canvas wide enough for every vertex.
    shifted = [[value + 5 for value in polygon]]
    canvas = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shifted, 60, 60)))
    expected = canvas[5 : 5 + HEIGHT, 5 : 5 + WIDTH][window.rows, window.columns] > 0
    if flip:
        expected = expected[:, ::-1]
    masks, left_over = crop_masks(record([polygon]), window)
    if expected.any():
        np.testing.assert_array_equal(masks[0], expected)
        assert left_over.tolist() == [0]
    else:
        assert len(masks) == len(left_over) == 0


def test_polygons_equal_pycocotools_at_the_images_own_size():
    star = [3.0, 2.5, 20.0, 4.0, 9.3, 12.0, 28.0, 20.0, 5.0, 21.7]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([star], HEIGHT, WIDTH)))
    np.testing.assert_array_equal(crop_masks(record([star]), whole())[0][0], expected > 0)


def test_several_polygons_are_one_object():
    left, right = [1, 1, 5, 1, 5, 5, 1, 5], [20, 1, 25, 1, 25, 5, 20, 5]
    masks, _ = crop_masks(record([left, right]), whole())
    assert masks.sum() == 4 * 4 + 5 * 4


@pytest.mark.parametrize("counts_as", ["bytes", "text", "list"])
def test_run_length_encodings_come_through_exactly(counts_as):
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[3:9, 4:21] = True
    expected[5:7, 8:10] = False
    encoded = rle(expected)
    if counts_as == "text":
        encoded["counts"] = encoded["counts"].decode()
    if counts_as == "list":
        flat = expected.ravel(order="F")
        changes = np.flatnonzero(np.diff(flat, prepend=False, append=~flat[-1]))
        encoded["counts"] = np.diff(changes, prepend=0).tolist()
    masks, _ = crop_masks(record(encoded), whole())
    np.testing.assert_array_equal(masks[0], expected)
    masks, _ = crop_masks(record(encoded), whole(flip=True))
    np.testing.assert_array_equal(masks[0], expected[:, ::-1])


def test_polygon_and_encoding_of_a_rectangle_agree_after_resizing():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[4:16, 8:24] = True
    polygon = [8.0, 4.0, 24.0, 4.0, 24.0, 16.0, 8.0, 16.0]
    for resized_hw in [(12, 16), (48, 64)]:
        window = CropWindow(resized_hw, 1, 2, (resized_hw[0] - 4, resized_hw[1] - 5), False)
        masks, left = crop_masks(record([polygon], rle(mask)), window)
        assert left.tolist() == [0, 1]
        np.testing.assert_array_equal(masks[0], masks[1])


def test_instances_outside_the_crop_are_left_out():
    inside = [20.0, 10.0, 26.0, 10.0, 26.0, 16.0, 20.0, 16.0]
    outside = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
    window = CropWindow((HEIGHT, WIDTH), 8, 8, (12, 20), False)
    encoded = rle(np.pad(np.ones((2, 2)), ((0, HEIGHT - 2), (0, WIDTH - 2))))
    masks, left = crop_masks(record([outside], [inside], encoded), window)
    assert left.tolist() == [1]
    assert masks.shape == (1, 12, 20)
    assert masks.sum() == 36


def test_an_image_without_instances_gives_no_masks():
    masks, left = crop_masks(record(), whole())
    assert masks.shape == (0, HEIGHT, WIDTH)
    assert left.shape == (0,)
