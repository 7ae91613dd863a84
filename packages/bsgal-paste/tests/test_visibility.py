from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import AnnotatedImage, Cutout, OfficialVisibility, VisibleShare, apply_cutouts


def solid(rows: slice, columns: slice, *, value: int = 200, full_area_px: int = 0) -> Cutout:
    """A fully opaque rectangle."""
    shape = rows.stop - rows.start, columns.stop - columns.start
    return Cutout(
        rgb=np.full((*shape, 3), value, dtype=np.uint8),
        alpha=np.full(shape, 255, dtype=np.uint8),
        label_mask=np.ones(shape, dtype=bool),
        rows=rows,
        columns=columns,
        full_area_px=full_area_px or shape[0] * shape[1],
        category_id=5,
        instance_id=f"solid-{value}",
    )


def image_with(height: int, width: int, *rectangles: tuple[slice, slice]) -> AnnotatedImage:
    masks = np.zeros((len(rectangles), height, width), dtype=bool)
    for mask, rectangle in zip(masks, rectangles, strict=True):
        mask[rectangle] = True
    image = np.zeros((height, width, 3), dtype=np.uint8)
    return AnnotatedImage(image, masks, np.ones(len(rectangles), dtype=int))


@pytest.mark.parametrize("side_px", [8, 100, 1000])
@pytest.mark.parametrize(("covered_share", "kept"), [(0.5, True), (0.75, True), (0.9375, False)])
def test_the_share_rule_judges_objects_of_any_size_alike(side_px, covered_share, kept):
    # 1/16 of the smallest object is 4 pixels, so each share is exact.
    target = image_with(side_px + 2, side_px * 2, (slice(0, side_px), slice(0, side_px)))
    covered_px = round(side_px * side_px * covered_share)
    full_rows, rest = divmod(covered_px, side_px)
    cover = np.zeros((side_px, side_px), dtype=bool)
    cover[:full_rows] = True
    cover[full_rows : full_rows + 1, :rest] = True
    over = solid(slice(0, side_px), slice(0, side_px))
    over = Cutout(over.rgb, over.alpha, cover, over.rows, over.columns, covered_px, 5, "cover")
    result = apply_cutouts(target, [over], visibility=VisibleShare(min_visible_frac=0.1))
    assert (0 in result.source_index) is kept
    if kept:
        assert result.visible_frac[0] == pytest.approx(1 - covered_share, abs=1e-5)
    else:
        assert result.removed[0].visible_frac == pytest.approx(1 - covered_share, abs=1e-4)


def test_the_pixel_floor_removes_small_leftovers_but_no_untouched_instance():
    target = image_with(20, 40, (slice(0, 4), slice(0, 4)), (slice(0, 3), slice(20, 23)))
    rule = VisibleShare(min_visible_frac=0, min_visible_px=10)
    result = apply_cutouts(target, [solid(slice(0, 10), slice(0, 2))], visibility=rule)
    assert [gone.source_index for gone in result.removed] == [0], "8 of its 16 px are left"
    assert result.source_index.tolist() == [1, -1]


def test_a_pasted_instance_hidden_by_a_later_one_is_not_drawn_and_hides_nothing():
    target = image_with(20, 40, (slice(0, 10), slice(0, 10)))
    lower = solid(slice(0, 10), slice(0, 10), value=111)
    upper = solid(slice(0, 10), slice(1, 30), value=222)
    result = apply_cutouts(target, [lower, upper], visibility=VisibleShare(min_visible_frac=0.2))
    assert not (result.image == 111).any()
    # The real instance keeps the column that only the undrawn one covered: 10 of 100 px.
    assert [gone.instance_id for gone in result.removed] == [None, "solid-111"]
    assert result.removed[0].visible_frac == pytest.approx(0.1)


def test_a_pasted_instance_mostly_outside_the_image_goes():
    target = image_with(20, 20)
    sliver = solid(slice(0, 10), slice(19, 20), full_area_px=200)
    result = apply_cutouts(target, [sliver], visibility=VisibleShare())
    assert len(result) == 0
    assert result.removed[0].visible_frac == pytest.approx(0.05)
    np.testing.assert_array_equal(result.image, target.image)


def test_kept_boxes_are_tightened_and_those_of_untouched_instances_are_not():
    target = image_with(20, 40, (slice(2, 10), slice(2, 12)), (slice(2, 10), slice(30, 35)))
    loose = AnnotatedImage(
        target.image, target.masks, [1, 1],
        boxes_xyxy=[[1.5, 1.5, 12.5, 10.5], [29.5, 1.5, 35.5, 10.5]],
    )  # fmt: skip
    over = solid(slice(0, 20), slice(8, 20))
    result = apply_cutouts(loose, [over], visibility=VisibleShare())
    expected = [[2, 2, 8, 10], [29.5, 1.5, 35.5, 10.5], [8, 0, 20, 20]]
    np.testing.assert_array_equal(result.boxes_xyxy, expected)


@pytest.mark.parametrize(
    ("height_px", "covered_rows", "kept"),
    [
        (20, 10, True),  # 10 px of the box gone, 200 px left: the box has hardly moved
        (20, 11, False),  # 11 px gone, 180 px left
        (50, 34, True),  # the box has moved, 320 px left
        (50, 35, False),  # 300 px left: must be more
    ],
)
def test_the_official_rule_keeps_10_px_moves_or_more_than_300_px(height_px, covered_rows, kept):
    target = image_with(60, 60, (slice(0, height_px), slice(0, 20)))
    over = solid(slice(0, covered_rows), slice(0, 20))
    result = apply_cutouts(target, [over], visibility=OfficialVisibility())
    assert (0 in result.source_index) is kept


def test_the_official_rule_measures_each_paste_by_itself():
    target = image_with(60, 60, (slice(0, 20), slice(0, 20)))
    steps = [solid(slice(0, 8), slice(0, 20)), solid(slice(8, 16), slice(0, 20))]
    kept = apply_cutouts(target, steps, visibility=OfficialVisibility())
    assert kept.source_index.tolist() == [0, -1, -1]
    at_once = apply_cutouts(
        target, [solid(slice(0, 16), slice(0, 20))], visibility=OfficialVisibility()
    )
    assert at_once.source_index.tolist() == [-1]


def test_by_the_official_rule_a_hidden_paste_stays_in_the_picture():
    target = image_with(40, 40)
    lower = solid(slice(0, 30), slice(0, 10), value=111)
    upper = solid(slice(0, 20), slice(0, 10), value=222)
    result = apply_cutouts(target, [lower, upper], visibility=OfficialVisibility())
    assert result.instance_ids == ["solid-222"]
    assert (result.image == 111).any()


@pytest.mark.parametrize("rule", [OfficialVisibility(), VisibleShare(min_visible_frac=0)])
def test_an_instance_without_a_pixel_left_always_goes(rule):
    # Its box shrinks to (0, 0, 0, 0), at most 10 px from where it was.
    target = image_with(20, 20, (slice(0, 5), slice(0, 5)))
    result = apply_cutouts(target, [solid(slice(0, 6), slice(0, 6))], visibility=rule)
    assert result.source_index.tolist() == [-1]


def test_a_ring_keeps_its_hole():
    ring = solid(slice(5, 15), slice(5, 15), full_area_px=84)
    ring.label_mask[3:7, 3:7] = False
    target = image_with(20, 20, (slice(8, 12), slice(8, 12)))
    result = apply_cutouts(target, [ring], visibility=VisibleShare())
    assert result.visible_frac.tolist() == [1, 1]
    assert not result.masks[1][8:12, 8:12].any()
    assert (result.image[8:12, 8:12] == 0).all()


@pytest.mark.parametrize("settings", [{"min_visible_frac": 1.1}, {"min_visible_px": 0}])
def test_impossible_limits_are_refused(settings):
    with pytest.raises(ValueError, match="`min_visible_frac`"):
        VisibleShare(**settings)
