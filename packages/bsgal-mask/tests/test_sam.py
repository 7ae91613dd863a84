"""SAM with tiny random weights: the loading and calling code is that of the real one."""

from __future__ import annotations

import numpy as np
import pytest

from bsgal_mask import Sam, SamBackgroundSegmenter, SamBoxSegmenter
from bsgal_mask._sam import box_xyxy, corners_xy


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (64, 64), (20, 90), (200, 100), (64, 64)]
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


@pytest.fixture
def sam(sam_folder):
    return Sam(sam_folder, batch_size=2)


def methods(sam, make_stub):
    return [
        SamBackgroundSegmenter(sam),
        SamBoxSegmenter(sam, boxes_from=make_stub(grow_px=1)),
    ]


def test_a_batch_of_images_of_any_size_gives_the_masks_of_one_by_one(sam_folder, images, make_stub):
    single = methods(Sam(sam_folder, batch_size=1), make_stub)
    batched = methods(Sam(sam_folder, batch_size=3), make_stub)
    for one, many in zip(single, batched, strict=True):
        masks = many.segment(images, [""] * 5)
        assert [mask.shape for mask in masks] == [image.shape[:2] for image in images]
        for image, mask in zip(images, masks, strict=True):
            assert mask.dtype == np.float32
            assert mask.min() >= 0
            assert mask.max() <= 1
            (alone,) = one.segment([image], [""])
            np.testing.assert_allclose(mask, alone, atol=1e-4)


def record_calls(sam, monkeypatch):
    model, calls = sam._checkpoint.model, []
    forward = model.forward

    def record(**inputs):
        outputs = forward(**inputs)
        assert not outputs.pred_masks.requires_grad
        calls.append(inputs | {"pred_masks": outputs.pred_masks})
        return outputs

    monkeypatch.setattr(model, "forward", record)
    return calls


def test_batches_are_real_and_bounded(sam, images, monkeypatch):
    calls = record_calls(sam, monkeypatch)
    SamBackgroundSegmenter(sam).segment(images, [""] * 5)
    assert [len(call["pixel_values"]) for call in calls] == [2, 2, 1]


def test_the_corners_are_asked_for_as_x_and_y_of_the_scaled_image(sam, images, monkeypatch):
    calls = record_calls(sam, monkeypatch)
    SamBackgroundSegmenter(sam, corner_margin_frac=0).segment([images[3]], [""])
    # 200 x 100 pixels become 64 x 32 in the padded square: height 64, width 32.
    points = calls[0]["input_points"][0, 0].numpy()
    right, bottom = 99 * 32 / 100, 199 * 64 / 200
    np.testing.assert_allclose(
        points, [(0, 0), (right, 0), (0, bottom), (right, bottom)], rtol=1e-5
    )


def test_the_object_is_what_the_corners_largest_mask_leaves(sam, images, monkeypatch):
    import torch

    model = sam._checkpoint.model
    maps = torch.full((1, 1, 3, 16, 16), -9.0)
    # The image is the left half of the padded square; only the third map counts.
    maps[0, 0, 2, :8, :4] = 9.0
    maps[0, 0, 0] = 5.0
    monkeypatch.setattr(model, "forward", lambda **_: type("Output", (), {"pred_masks": maps}))
    (mask,) = SamBackgroundSegmenter(sam).segment([images[3]], [""])
    assert mask[:90, :45].max() < 0.05
    assert mask[110:].min() > 0.95
    assert mask[:, 55:].min() > 0.95


def test_the_box_of_another_method_is_asked_for(sam, drawn, make_stub, monkeypatch):
    calls = record_calls(sam, monkeypatch)
    image, truth = drawn("disc")
    method = SamBoxSegmenter(sam, boxes_from=make_stub(), margin_frac=0)
    method.segment([image, image], ["", ""])
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * 64 / 96
    assert calls[0]["input_boxes"].shape == (2, 1, 4)
    np.testing.assert_allclose(calls[0]["input_boxes"][1, 0], box, rtol=1e-5)
    assert calls[0]["pred_masks"].shape[2] == 1


def test_without_a_box_there_is_no_mask_and_the_others_keep_their_place(sam, drawn, make_stub):
    image, _ = drawn("disc")
    blank = np.full((30, 50, 3), 200, np.uint8)
    method = SamBoxSegmenter(sam, boxes_from=make_stub())
    first, middle, last = method.segment([image, blank, image], [""] * 3)
    assert middle.shape == (30, 50)
    assert not middle.any()
    np.testing.assert_allclose(first, last, atol=1e-5)
    assert first.any()
    (none,) = method.segment([blank], [""])
    assert not none.any()


def test_boxes_are_widened_but_stay_inside():
    mask = np.zeros((20, 30), np.float32)
    mask[0:10, 10:20] = 0.5
    np.testing.assert_allclose(box_xyxy(mask, 0.1), [9, 0, 21, 11])
    assert box_xyxy(mask * 0.9, 0.1) is None


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (50, 50)])
def test_corner_points_lie_inside_any_image(height, width):
    points = corners_xy((height, width), 0.1)
    assert points.shape == (4, 2)
    assert (points >= 0).all()
    assert (points <= [width - 1, height - 1]).all()
    np.testing.assert_allclose(points.mean(axis=0), [(width - 1) / 2, (height - 1) / 2])


def test_configs_say_what_decides_the_masks(sam, make_stub):
    background, box = (method.config() for method in methods(sam, make_stub))
    assert background["weights_sha256"] == box["weights_sha256"] == sam.config()["weights_sha256"]
    assert background["corner_margin_frac"] == 0.01
    assert box["boxes_from"] == {"name": "stub", "grow_px": 1}


def test_impossible_settings_are_refused(sam, sam_folder, make_stub):
    with pytest.raises(ValueError, match="`batch_size`"):
        Sam(sam_folder, batch_size=0)
    with pytest.raises(ValueError, match="`corner_margin_frac`"):
        SamBackgroundSegmenter(sam, corner_margin_frac=0.5)
    with pytest.raises(ValueError, match="`margin_frac`"):
        SamBoxSegmenter(sam, boxes_from=make_stub(), margin_frac=-1)
