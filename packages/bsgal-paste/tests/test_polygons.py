from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from bsgal_paste import mask_to_polygons


def drawn(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    rles = coco_mask.frPyObjects(polygons, height, width)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 50))
def test_drawing_the_polygons_gives_the_mask_again(seed, height, width):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 2, size=rng.integers(1, 8, size=2)).astype(np.uint8) * 255
    mask = cv2.resize(coarse, (width, height)) > 127
    mask ^= rng.random((height, width)) < rng.choice([0, 0.02, 0.3])
    mask[rng.integers(height), rng.integers(width)] = True
    polygons = mask_to_polygons(mask)
    assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in polygons)
    np.testing.assert_array_equal(drawn(polygons, height, width), mask)


def test_holes_and_what_lies_in_them_are_kept():
    distance = np.hypot(*np.mgrid[-50:50, -60:60])
    ring_around_disc = ((distance < 45) & (distance > 20)) | (distance < 9)
    ring_around_disc[[10, 90], [60, 60]] = False
    polygons = mask_to_polygons(ring_around_disc)
    assert len(polygons) == 2
    np.testing.assert_array_equal(drawn(polygons, 100, 120), ring_around_disc)


def test_a_rectangle_has_its_four_corners():
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:5, 3:8] = True
    (polygon,) = mask_to_polygons(mask)
    corners = set(zip(polygon[::2], polygon[1::2], strict=True))
    assert corners == {(3, 2), (8, 2), (8, 5), (3, 5)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_even_a_single_pixel_is_a_polygon(shape):
    (polygon,) = mask_to_polygons(np.ones(shape, dtype=bool))
    assert len(polygon) == 8


def test_no_mask_gives_no_polygon():
    assert mask_to_polygons(np.zeros((4, 4), dtype=bool)) == []
