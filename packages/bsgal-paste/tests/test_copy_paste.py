from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import (
    PRESETS,
    AnnotatedImage,
    CategoryBalancedSampler,
    CopyPaste,
    CorruptInstanceError,
    InstancePool,
    NormalScale,
    OfficialVisibility,
    PasteConfig,
    PasteParameters,
    ScaleStatistics,
    UniformScale,
)
from bsgal_paste._cutout import reshape_weighted, weighted_by_alpha


def parameters(n: int = 1, **changes) -> PasteParameters:
    fields = {
        "positions": np.arange(n),
        "scales": np.full(n, 0.25),
        "aspect_factors": np.ones(n),
        "flips": np.zeros(n, dtype=bool),
        "centres_xy": np.full((n, 2), 0.5),
    }
    return PasteParameters(**{**fields, **changes})


def paster(pool: InstancePool, **options) -> CopyPaste:
    sampler = CategoryBalancedSampler(pool, count_range=(4, 9))
    return CopyPaste(pool, sampler, UniformScale(scale_range=(0.1, 0.5)), **options)


def blank(height: int = 80, width: int = 100) -> AnnotatedImage:
    image = np.full((height, width, 3), 40, dtype=np.uint8)
    return AnnotatedImage(image, np.zeros((0, height, width), dtype=bool), [])


def opaque_pool(height: int, width: int) -> InstancePool:
    rgba = np.full((height, width, 4), 255, dtype=np.uint8)
    rgba[..., 0] = np.linspace(0, 200, width).astype(np.uint8)
    return InstancePool.from_arrays([rgba], [1])


def test_the_box_has_the_drawn_share_of_the_image_and_the_aspect_of_the_instance():
    # s^2 H W = 0.25^2 * 80 * 100 = 500 = 50 x 10 at aspect 5.
    result = paster(opaque_pool(30, 150)).apply(blank(), parameters())
    np.testing.assert_array_equal(result.boxes_xyxy, [[25, 35, 75, 45]])
    np.testing.assert_array_equal(result.areas, [500])


def test_the_aspect_factor_changes_the_shape_and_not_the_area():
    # 40 x 12.5 at aspect 3.2; whole pixels, rounded down.
    changed = parameters(aspect_factors=np.array([0.64]))
    result = paster(opaque_pool(30, 150)).apply(blank(), changed)
    width, height = result.boxes_xyxy[0, 2:] - result.boxes_xyxy[0, :2]
    assert (width, height) == (40, 12)


def test_a_flip_mirrors_the_pixels_in_the_same_box():
    paste = paster(opaque_pool(40, 40))
    plain = paste.apply(blank(), parameters())
    mirrored = paste.apply(blank(), parameters(flips=np.array([True])))
    np.testing.assert_array_equal(plain.boxes_xyxy, mirrored.boxes_xyxy)
    left, top, right, bottom = plain.boxes_xyxy[0].astype(int)
    window = slice(top, bottom), slice(left, right)
    np.testing.assert_array_equal(plain.image[window][:, ::-1], mirrored.image[window])


def test_flipping_everything_commutes_with_pasting(pool):
    # Boxes of an even width sit symmetrically about a centre on the pixel grid.
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    masks = np.zeros((1, 80, 100), dtype=bool)
    masks[0, 10:60, 5:50] = True
    centres = np.array([[0.3, 0.5], [0.5, 0.4], [0.7, 0.6]])
    scales = np.array([0.44, 0.43, 0.4])
    drawn = parameters(3, centres_xy=centres, scales=scales)
    opposite = parameters(
        3, centres_xy=np.abs([1, 0] - centres), scales=scales, flips=np.ones(3, dtype=bool)
    )
    paste = paster(pool)
    widths = np.diff(paste.apply(AnnotatedImage(image, masks, [1]), drawn).boxes_xyxy[:, ::2])
    direct = paste.apply(AnnotatedImage(image, masks, [1]), drawn)
    flipped = AnnotatedImage(
        np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(masks[..., ::-1]), [1]
    )
    mirrored = paste.apply(flipped, opposite)
    assert len(widths) == len(direct)
    np.testing.assert_array_equal(mirrored.masks[..., ::-1], direct.masks)
    np.testing.assert_array_equal(mirrored.image[:, ::-1], direct.image)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scales": np.array([0.04])}, "too_small"),
        ({"scales": np.array([0.99])}, "too_large"),
    ],
)
def test_an_instance_that_does_not_fit_is_left_out_and_named(change, reason):
    result = paster(opaque_pool(30, 60)).apply(blank(), parameters(**change))
    assert len(result) == 0
    assert [(gone.reason, gone.instance_id) for gone in result.removed] == [(reason, "memory-0")]


def test_an_instance_whose_object_lies_outside_is_left_out_and_named():
    rgba = np.zeros((40, 40, 4), dtype=np.uint8)
    rgba[:, 30:, 3] = 255
    pool = InstancePool.from_arrays([rgba], [1])
    at_the_edge = parameters(centres_xy=np.array([[0.999, 0.5]]))
    result = paster(pool).apply(blank(), at_the_edge)
    assert [gone.reason for gone in result.removed] == ["outside"]


def test_the_label_mask_is_thresholded_after_resizing():
    # A hard 2 px column shrunk fourfold is half covered: alpha 127.5, which rounds to 128.
    rgba = np.zeros((40, 40, 4), dtype=np.uint8)
    rgba[:, :18, 3] = 255
    areas = []
    for threshold in (1, 128, 129):
        pool = InstancePool.from_arrays([rgba], [1], label_mask_threshold=threshold)
        result = paster(pool).apply(blank(40, 40), parameters())
        areas.append(result.areas.tolist())
    assert areas == [[50], [50], [40]]


def test_transparent_colours_do_not_bleed_into_the_edge():
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[...] = (0, 255, 0, 0)
    rgba[16:45, 16:45] = (200, 30, 10, 255)
    for size in ((23, 17), (100, 90)):
        resized = reshape_weighted(weighted_by_alpha(rgba), *size)
        visible = resized[resized[..., 3] > 0].astype(int)
        # What a colour is worth in the picture: a pixel that is hardly there may be a little off.
        weight = visible[:, 3:] / 255
        assert (np.abs(visible[:, :3] - (200, 30, 10)) * weight).max() <= 1


def test_hard_blending_reproduces_its_golden_image():
    # Shrunk exactly fourfold, so that every pixel is known.
    rgba = np.zeros((32, 32, 4), dtype=np.uint8)
    rgba[:, :, 0] = np.repeat([10, 20, 30, 40], 8)
    rgba[8:, :, 3] = 255
    rgba[24:, :16, 3] = 100
    drawn = parameters(scales=np.array([0.4]), centres_xy=np.array([[0.88, 0.5]]))
    pool = InstancePool.from_arrays([rgba], [1])
    result = paster(pool).apply(blank(16, 25), drawn)
    golden = np.full((16, 25), 40)
    golden[6:10, 18:25] = [10, 10, 20, 20, 30, 30, 40]
    golden[10:12, 22:25] = [30, 30, 40]
    np.testing.assert_array_equal(result.image[..., 0], golden)
    painted = result.image[..., 1] == 0
    np.testing.assert_array_equal(painted, result.masks[0])
    np.testing.assert_array_equal(result.boxes_xyxy, [[18, 6, 25, 12]])
    # 48 - 8 pixels of the object, of which one column of 6 is outside the image.
    np.testing.assert_allclose(result.visible_frac, [34 / 40])


def test_alpha_blending_mixes_by_the_soft_alpha():
    rgba = np.full((40, 40, 4), 200, dtype=np.uint8)
    rgba[..., 3] = 153
    pool = InstancePool.from_arrays([rgba], [1])
    soft = paster(pool, blend_mode="alpha").apply(blank(), parameters())
    left, top, right, bottom = soft.boxes_xyxy[0].astype(int)
    # Alpha 0.6 between 40 and 200.
    assert set(soft.image[top:bottom, left:right].ravel().tolist()) == {136}


def test_later_pastes_lie_over_earlier_ones():
    red, green = (np.full((20, 20, 4), 255, dtype=np.uint8) for _ in range(2))
    red[..., 1:3] = 0
    green[..., ::2] = 0
    pool = InstancePool.from_arrays([red, green], [1, 2], instance_ids=["red", "green"])
    shifted = parameters(2, centres_xy=np.array([[0.5, 0.5], [0.55, 0.5]]))
    result = paster(pool).apply(blank(), shifted)
    assert result.instance_ids == ["red", "green"]
    assert result.visible_frac[0] < 1
    assert result.visible_frac[1] == 1
    assert result.image[40, 55].tolist() == [0, 255, 0]


def test_the_original_is_handed_back_untouched(pool, target):
    before = target.image.copy(), target.masks.copy()
    result = paster(pool)(target, np.random.default_rng(3))
    assert result.n_pasted > 0
    assert result.original is target
    np.testing.assert_array_equal(target.image, before[0])
    np.testing.assert_array_equal(target.masks, before[1])


def test_drawing_reads_no_image(write_pool):
    root = write_pool([{}])
    (root / "instances/1/i000.png").unlink()
    paste = paster(InstancePool.open(root))
    assert len(paste.sample_parameters((50, 50), np.zeros(0), np.random.default_rng(0)).positions)


def test_an_unreadable_instance_raises_or_is_left_out_and_named(write_pool, target):
    root = write_pool([{}, {"category_id": 2}])
    (root / "instances/1/i000.png").write_bytes(b"no image")
    pool = InstancePool.open(root)
    with pytest.raises(CorruptInstanceError, match="i000"):
        paster(pool)(target, np.random.default_rng(0))
    result = paster(pool, on_corrupt="skip")(target, np.random.default_rng(0))
    assert {gone.instance_id for gone in result.removed if gone.reason == "corrupt"} == {"i000"}
    assert "i001" in result.instance_ids


def test_a_pool_with_other_category_ids_than_the_statistics_is_refused(pool):
    statistics = ScaleStatistics.from_annotations(
        {
            "images": [{"id": 1, "width": 10, "height": 10}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5]}],
            "categories": [{"id": 2, "name": "ball"}],
        }
    )
    with pytest.raises(ValueError, match=r"category 1 is not in.*pool.match\(categories\)"):
        CopyPaste(pool, CategoryBalancedSampler(pool), NormalScale(statistics=statistics))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"aspect_range": (0, 1)}, "`aspect_range` must be"),
        ({"flip_prob": 1.5}, "`flip_prob` must be in"),
        ({"rotation_range_deg": (10, 0)}, "`rotation_range_deg` must be"),
        ({"position": "middle"}, "`position` must be one of"),
        ({"order": "small_first"}, "`order` must be one of"),
        ({"min_side_px": 0}, "`min_side_px` and `max_donor_instances` must be positive"),
        ({"donor_scale_range": (0, 2)}, "`donor_scale_range` must be"),
        ({"blend_mode": "possion"}, "`blend_mode` must be one of"),
        ({"on_corrupt": "ignore"}, "`on_corrupt` must be"),
    ],
)
def test_bad_options_are_refused(pool, option, message):
    with pytest.raises(ValueError, match=message):
        paster(pool, **option)


def test_the_xpaste_preset_has_the_published_numbers(pool):
    config = PRESETS["xpaste"]
    assert (config.count_range, config.aspect_range, config.flip_prob) == ((0, 20), (0.8, 1.2), 0.5)
    statistics = ScaleStatistics({}, {}, {})
    with pytest.raises(ValueError, match="category 1"):
        config.build(pool, statistics)
    paste = config.build(InstancePool.from_arrays([], []), statistics)
    assert paste.visibility == OfficialVisibility(max_box_shift_px=10, min_area_px=300)
    assert paste.scale == NormalScale(statistics=statistics, min_side_px=10, max_scale=0.5)
    assert paste.blend_mode == "hard"


def test_a_config_needs_exactly_one_source_of_scales(pool):
    with pytest.raises(ValueError, match="either `statistics` or set `scale_range`"):
        PasteConfig().build(pool)
    with pytest.raises(ValueError, match="either `statistics` or set `scale_range`"):
        PasteConfig(scale_range=(0.1, 0.2)).build(pool, ScaleStatistics({}, {}, {}))
    with pytest.raises(ValueError, match="`visibility` must be"):
        PasteConfig(scale_range=(0.1, 0.2), visibility="all").build(pool)


def test_a_seeded_paste_has_not_changed(pool, target):
    # Guards against silent changes of the random draws and of the geometry.
    result = paster(pool)(target, np.random.default_rng(2024))
    assert result.instance_ids == GOLDEN_IDS
    np.testing.assert_array_equal(result.boxes_xyxy, GOLDEN_BOXES)


GOLDEN_IDS = [None, None, "memory-0", "memory-0", "memory-0", "memory-0"]
GOLDEN_BOXES = [
    [20, 10, 60, 50],
    [70, 60, 120, 90],
    [49, 20, 66, 33],
    [103, 15, 121, 26],
    [26, 69, 45, 85],
    [19, 16, 50, 35],
]
