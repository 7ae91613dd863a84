"""What must hold for every paste, whatever the image, the pool and the seed."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bsgal_paste import (
    AnnotatedImage,
    CategoryBalancedSampler,
    ColourJitter,
    CopyPaste,
    ImageDonors,
    InstancePool,
    OfficialVisibility,
    UniformScale,
    VisibleShare,
    tight_boxes_xyxy,
)

VISIBILITY = st.sampled_from(
    [
        VisibleShare(),
        VisibleShare(min_visible_frac=0.0),
        VisibleShare(min_visible_frac=0.6, min_visible_px=40),
        OfficialVisibility(),
    ]
)


def donor_options(draw, rng):
    """Sometimes copy from a second random image as well."""
    if not draw(st.booleans()):
        return {}
    height, width = rng.integers(8, 120, size=2)
    masks = rng.random((draw(st.integers(1, 4)), height, width)) < 0.3
    masks[:, 0, 0] = True
    image = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    donor = AnnotatedImage(image, masks, rng.integers(1, 9, size=len(masks)))
    return {"source": "both", "donors": ImageDonors([donor])}


@st.composite
def pastes(draw, blend_mode="hard"):
    """A random image with disjoint instances, a random pool, a paste from one into the other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(12, 90)), draw(st.integers(12, 90))
    labels = cv2.resize(
        rng.integers(0, 5, size=(4, 5)).astype(np.uint8), (width, height), interpolation=0
    )
    masks = np.array([labels == label for label in range(1, 5) if (labels == label).any()])
    masks = masks.reshape(-1, height, width)
    image = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    target = AnnotatedImage(image, masks, rng.integers(1, 9, size=len(masks)))
    sizes = rng.integers(8, 50, size=(draw(st.sampled_from([0, 1, 3, 6])), 2))
    pool = InstancePool.from_arrays(
        [rng.integers(0, 256, size=(h, w, 4), dtype=np.uint8) for h, w in sizes],
        rng.integers(1, 4, size=len(sizes)).tolist(),
        label_mask_threshold=draw(st.sampled_from([0, 1, 128, 255])),
    )
    paste = CopyPaste(
        pool,
        CategoryBalancedSampler(pool, count_range=draw(st.sampled_from([(0, 3), (8, 16)]))),
        UniformScale(scale_range=(0.1, 0.8)),
        visibility=draw(VISIBILITY),
        blend_mode=blend_mode,
        position=draw(st.sampled_from(["uniform", "inside"])),
        order=draw(st.sampled_from(["drawn", "large_first"])),
        rotation_range_deg=draw(st.sampled_from([(0, 0), (-180, 180)])),
        colour_jitter=draw(st.sampled_from([None, ColourJitter(prob=0.7)])),
        **donor_options(draw, rng),
    )
    seed = draw(st.integers(0, 2**32 - 1))
    return target, paste, seed


@settings(max_examples=1000)
@given(pastes())
def test_every_field_stays_in_step(case):
    target, paste, seed = case
    result = paste(target, np.random.default_rng(seed))
    fields = (
        result.boxes_xyxy, result.category_ids, result.areas, result.instance_ids,
        result.source_index, result.visible_frac, result.is_pasted, result.origins,
    )  # fmt: skip
    assert {len(field) for field in fields} == {len(result.masks)}
    np.testing.assert_array_equal(result.boxes_xyxy, tight_boxes_xyxy(result.masks))
    np.testing.assert_array_equal(result.areas, result.masks.sum(axis=(1, 2)))
    assert (result.areas > 0).all()
    assert ((result.visible_frac > 0) & (result.visible_frac <= 1)).all()
    assert result.masks.sum(axis=0, dtype=int).max(initial=0) <= 1, "masks overlap"

    n_real = len(result) - result.n_pasted
    assert not result.is_pasted[:n_real].any(), "real instances come first"
    assert (np.diff(result.source_index[:n_real]) > 0).all(), "in the order of the input"
    assert result.instance_ids[:n_real] == [None] * n_real
    assert None not in result.instance_ids[n_real:]
    assert set(result.origins[:n_real]) <= {"real"}
    assert set(result.origins[n_real:]) <= {"pool", "self"}
    kept_categories = target.category_ids[result.source_index[:n_real]]
    np.testing.assert_array_equal(result.category_ids[:n_real], kept_categories)


@settings(max_examples=100)
@given(pastes())
def test_no_instance_gains_pixels_and_none_is_lost_unnamed(case):
    target, paste, seed = case
    drawn = paste.sample_parameters(
        target.image_hw, target.category_ids, np.random.default_rng(seed)
    )
    result = paste(target, np.random.default_rng(seed))
    for mask, source in zip(result.masks, result.source_index, strict=True):
        if source >= 0:
            assert not (mask & ~target.masks[source]).any()
    removed_real = {gone.source_index for gone in result.removed if gone.source_index >= 0}
    kept_real = set(result.source_index[~result.is_pasted].tolist())
    assert removed_real | kept_real == set(range(len(target)))
    assert not removed_real & kept_real
    from_pool = [origin == "pool" for origin in result.origins].count(True)
    from_pool += sum(str(gone.instance_id).startswith("memory-") for gone in result.removed)
    assert from_pool == len(drawn.positions)


@settings(max_examples=200)
@given(pastes())
def test_pixels_outside_the_pasted_masks_are_unchanged(case):
    target, paste, seed = case
    before = target.image.copy()
    result = paste(target, np.random.default_rng(seed))
    np.testing.assert_array_equal(target.image, before)
    # By the official rule an instance can leave the annotations and stay in the picture.
    still_seen = any(gone.reason == "hidden" and gone.source_index < 0 for gone in result.removed)
    if still_seen and isinstance(paste.visibility, OfficialVisibility):
        return
    outside = ~result.masks[result.is_pasted].any(axis=0)
    np.testing.assert_array_equal(result.image[outside], before[outside])


@settings(max_examples=100)
@given(pastes(blend_mode="gaussian"))
def test_gaussian_blending_keeps_to_the_pasted_masks_too(case):
    target, paste, seed = case
    paste.visibility = VisibleShare(min_visible_frac=0.0)
    result = paste(target, np.random.default_rng(seed))
    outside = ~result.masks[result.is_pasted].any(axis=0)
    np.testing.assert_array_equal(result.image[outside], target.image[outside])


@settings(max_examples=100)
@given(pastes(), st.sampled_from(["alpha", "gaussian", "poisson"]))
def test_blending_changes_no_annotation(case, blend_mode):
    target, paste, seed = case
    paste.blend_mode = blend_mode
    soft = paste(target, np.random.default_rng(seed))
    paste.blend_mode = "hard"
    hard = paste(target, np.random.default_rng(seed))
    np.testing.assert_array_equal(soft.masks, hard.masks)
    np.testing.assert_array_equal(soft.boxes_xyxy, hard.boxes_xyxy)
    assert soft.instance_ids == hard.instance_ids


@settings(max_examples=60)
@given(pastes())
def test_the_same_seed_gives_the_same_bytes(case):
    target, paste, seed = case
    first = paste(target, np.random.default_rng(seed))
    second = paste(target, np.random.default_rng(seed))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.masks.tobytes() == second.masks.tobytes()
    assert first.boxes_xyxy.tobytes() == second.boxes_xyxy.tobytes()
    assert first.removed == second.removed


@settings(max_examples=60)
@given(pastes())
def test_nothing_drawn_is_the_identity(case):
    target, paste, seed = case
    paste.sampler = CategoryBalancedSampler(paste.pool, count_range=(0, 1))
    paste.donors = None
    result = paste(target, np.random.default_rng(seed))
    assert result.image.tobytes() == target.image.tobytes()
    assert result.masks.tobytes() == target.masks.tobytes()
    assert result.boxes_xyxy.tobytes() == target.boxes_xyxy.tobytes()
    assert result.removed == ()
    assert result.n_pasted == 0


@settings(max_examples=60)
@given(pastes())
def test_a_result_can_be_pasted_into_again(case):
    target, paste, seed = case
    once = paste(target, np.random.default_rng(seed))
    twice = paste(once.annotated_image(), np.random.default_rng(seed + 1))
    assert len(twice.instance_ids) == len(twice.masks)
    first_round = [once.instance_ids[source] for source in twice.source_index if source >= 0]
    assert twice.instance_ids[: len(first_round)] == first_round
