from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bsgal_mask import CleanUp

KEEP = CleanUp(min_island_frac=0, edge_frac=1)
THRESHOLD = 128


def canvas(*boxes_xyxy, value=255):
    alpha = np.zeros((100, 100), np.uint8)
    for x0, y0, x1, y1 in boxes_xyxy:
        alpha[y0:y1, x0:x1] = value
    return alpha


def n_parts(alpha):
    return cv2.connectedComponents((alpha >= THRESHOLD).astype(np.uint8), connectivity=8)[0] - 1


def test_keeping_everything_changes_nothing(drawn):
    alpha = np.random.default_rng(0).integers(0, 256, (50, 40), np.uint8)
    np.testing.assert_array_equal(KEEP.apply(alpha, THRESHOLD), alpha)


def test_small_islands_go_and_large_parts_stay():
    alpha = canvas((10, 10, 40, 40), (60, 60, 80, 80), (90, 5, 92, 7))
    cleaned = CleanUp(min_island_frac=0.001).apply(alpha, THRESHOLD)
    assert n_parts(cleaned) == 2
    assert not cleaned[5:7, 90:92].any()


def test_only_the_largest_part_stays_when_asked():
    alpha = canvas((10, 10, 40, 40), (60, 60, 80, 80))
    cleaned = CleanUp(parts="largest").apply(alpha, THRESHOLD)
    assert n_parts(cleaned) == 1
    assert cleaned[20, 20] == 255


def test_parts_that_touch_at_a_corner_are_one():
    assert (
        n_parts(CleanUp(parts="largest").apply(canvas((10, 10, 20, 20), (20, 20, 25, 25)), 128))
        == 1
    )
    assert CleanUp(parts="largest").apply(canvas((10, 10, 20, 20), (20, 20, 25, 25)), 128)[22, 22]


def test_a_rings_hole_is_kept_by_default_and_filled_under_its_size(drawn):
    _, ring = drawn("ring")
    alpha = ring.astype(np.uint8) * 255
    assert CleanUp().apply(alpha, THRESHOLD)[48, 48] == 0
    hole_frac = 441 / alpha.size
    kept = CleanUp(fill_holes_below_frac=hole_frac / 4).apply(alpha, THRESHOLD)
    assert kept[48, 48] == 0
    assert CleanUp(fill_holes_below_frac=1).apply(alpha, THRESHOLD)[48, 48] == 255


def test_a_bay_that_reaches_the_border_is_no_hole():
    alpha = canvas((0, 0, 100, 100))
    alpha[40:60, 50:] = 0
    np.testing.assert_array_equal(CleanUp(fill_holes_below_frac=1).apply(alpha, THRESHOLD), alpha)


def test_a_filled_hole_is_solid_with_its_faded_rim():
    alpha = canvas((10, 10, 50, 50))
    alpha[29:32, 29:32] = 150
    alpha[30, 30] = 20
    assert (CleanUp(fill_holes_below_frac=0.01).apply(alpha, THRESHOLD)[29:32, 29:32] == 255).all()


def test_haze_far_from_the_object_goes_and_the_soft_edge_stays():
    alpha = canvas((0, 0, 100, 100), value=30)
    alpha[40:60, 40:60] = 255
    cleaned = CleanUp(edge_frac=0.02).apply(alpha, THRESHOLD)
    assert cleaned[50, 38] == 30
    assert not cleaned[50, :38].any()


def test_an_empty_mask_stays_empty():
    haze = np.full((30, 30), 90, np.uint8)
    assert not CleanUp().apply(haze, THRESHOLD).any()


@settings(max_examples=60)
@given(
    arrays(np.uint8, (12, 14), elements=st.sampled_from([0, 60, 128, 255])),
    st.sampled_from(["all", "largest"]),
    st.sampled_from([0, 0.02, 0.1]),
    st.sampled_from([0, 0.02, 1]),
    st.sampled_from([0, 0.1]),
)
def test_cleaning_twice_changes_nothing_more(alpha, parts, island, holes, edge):
    clean_up = CleanUp(
        parts=parts, min_island_frac=island, fill_holes_below_frac=holes, edge_frac=edge
    )
    once = clean_up.apply(alpha, THRESHOLD)
    np.testing.assert_array_equal(clean_up.apply(once, THRESHOLD), once)


def regions(mask, neighbours):
    """Return the connected regions of a mask as sets of (row, column), by plain flood fill."""
    left, found = {(int(row), int(column)) for row, column in np.argwhere(mask)}, []
    while left:
        queue = [left.pop()]
        region = set(queue)
        while queue:
            row, column = queue.pop()
            near = {(row + down, column + right) for down, right in neighbours} & left
            left -= near
            region |= near
            queue += near
        found.append(region)
    return found


FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]
EIGHT = [*FOUR, (-1, -1), (-1, 1), (1, -1), (1, 1)]


@settings(max_examples=60)
@given(arrays(np.bool_, (9, 11)), st.integers(0, 12), st.integers(0, 12))
def test_parts_and_holes_are_those_of_a_flood_fill(mask, least_island_px, least_hole_px):
    expected = np.zeros_like(mask)
    for region in regions(mask, EIGHT):
        if len(region) >= least_island_px:
            expected[tuple(zip(*region, strict=True))] = True
    for region in regions(~expected, FOUR):
        reaches_out = any(row in (0, 8) or column in (0, 10) for row, column in region)
        if not reaches_out and len(region) < least_hole_px:
            expected[tuple(zip(*region, strict=True))] = True
    clean_up = CleanUp(
        min_island_frac=least_island_px / mask.size,
        fill_holes_below_frac=least_hole_px / mask.size,
        edge_frac=1,
    )
    alpha = np.where(mask, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(clean_up.apply(alpha, THRESHOLD) >= THRESHOLD, expected)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("parts", "some"), ("min_island_frac", -0.1), ("fill_holes_below_frac", 2), ("edge_frac", -1)],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        CleanUp(**{setting: value})
