from __future__ import annotations

import builtins

import numpy as np
import pytest
from PIL import Image

from bsgal_mask import (
    MissingModelError,
    SegmentationError,
    U2NetSegmenter,
    confidence,
    find_u2netp,
    intersection_over_union,
)
from bsgal_mask._onnx_batch import with_free_batch
from bsgal_mask._u2net import postprocess, preprocess


@pytest.fixture(scope="module")
def u2netp():
    try:
        find_u2netp()
    except MissingModelError as error:
        pytest.skip(str(error))
    return U2NetSegmenter(batch_size=2)


def test_u2netp_finds_a_drawn_disc(u2netp, drawn):
    image, truth = drawn("disc", side_px=160)
    (mask,) = u2netp.segment([image], ["ball"])
    assert intersection_over_union(mask >= 0.5, truth) > 0.95


def test_u2netp_gives_equal_masks_in_any_batch(u2netp, drawn):
    images = [drawn("disc")[0], drawn("ring", side_px=64)[0], drawn("two parts")[0]]
    batched = u2netp.segment(images, ["a", "b", "c"])
    for image, mask in zip(images, batched, strict=True):
        np.testing.assert_array_equal(u2netp.segment([image], ["x"])[0], mask)


def test_a_fixed_batch_of_one_is_freed(mean_model, drawn):
    segmenter = U2NetSegmenter(mean_model(), batch_size=3)
    shapes = []
    run = segmenter._session.run

    class Recorder:
        def run(self, outputs, inputs):
            (batch,) = inputs.values()
            shapes.append(batch.shape)
            return run(outputs, inputs)

    segmenter._session = Recorder()
    segmenter.segment([drawn("disc")[0]] * 5, ["ball"] * 5)
    assert shapes == [(3, 3, 320, 320), (2, 3, 320, 320)]


def test_masks_are_the_models_output_stretched_and_scaled(mean_model, drawn):
    image, _ = drawn("disc")
    (mask,) = U2NetSegmenter(mean_model()).segment([image], ["ball"])
    np.testing.assert_allclose(
        mask, postprocess(preprocess(image).mean(axis=0), (96, 96)), atol=1e-5
    )
    assert mask.dtype == np.float32
    assert mask.max() > 0.95
    assert confidence(mask) is not None


def test_preprocessing_is_the_published_one():
    image = np.random.default_rng(0).integers(0, 200, (320, 320, 3), np.uint8)
    scaled = image / np.max(image)
    expected = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(preprocess(image), expected.transpose(2, 0, 1), atol=1e-5)


def test_preprocessing_resizes_without_aliasing():
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 200
    resized = preprocess(stripes)[0]
    inner = resized[:, 2:-2]
    assert float(inner.max() - inner.min()) < 0.05


def test_a_black_image_and_a_constant_map_give_finite_nothing():
    assert np.isfinite(preprocess(np.zeros((8, 8, 3), np.uint8))).all()
    assert not postprocess(np.full((320, 320), 0.3, np.float32), (10, 20)).any()


def test_the_soft_map_is_scaled_before_any_threshold():
    ramp = np.tile(np.linspace(0, 1, 320, dtype=np.float32), (320, 1))
    mask = postprocess(ramp, (64, 640))
    assert mask.shape == (64, 640)
    assert np.unique(mask).size > 500


def test_a_missing_provider_is_an_error_and_not_a_fallback(mean_model):
    with pytest.raises(
        ValueError, match=r"'NoSuchProvider' is not available here; available: .*CPU"
    ):
        U2NetSegmenter(mean_model(), provider="NoSuchProvider")


def test_a_provider_that_does_not_start_is_an_error(mean_model, monkeypatch):
    import onnxruntime

    available = [*onnxruntime.get_available_providers(), "OtherProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    session_class = onnxruntime.InferenceSession

    def session(model, options, providers):
        return session_class(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(ValueError, match="'OtherProvider' could not be started"):
        U2NetSegmenter(mean_model(), provider="OtherProvider")


def test_a_missing_runtime_says_how_to_install_it(mean_model, monkeypatch):
    plain_import = builtins.__import__

    def without_onnxruntime(name, *arguments):
        if name == "onnxruntime":
            raise ImportError(name)
        return plain_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_onnxruntime)
    with pytest.raises(MissingModelError, match=r"pip install 'bsgal-mask\[u2net\]'"):
        U2NetSegmenter(mean_model())


@pytest.mark.parametrize(("side_px", "channels"), [(64, 3), (320, 4)])
def test_another_kind_of_model_is_refused(mean_model, side_px, channels):
    with pytest.raises(ValueError, match="is not a U2-Net"):
        U2NetSegmenter(mean_model(side_px, channels))


def test_a_damaged_model_file_is_refused(mean_model, tmp_path):
    whole = mean_model().read_bytes()
    for name, content in {"cut": whole[:-20], "text": b"<html>not found</html>"}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            U2NetSegmenter(path)


def test_a_failure_inside_the_runtime_names_it(mean_model, drawn):
    segmenter = U2NetSegmenter(mean_model())
    segmenter._output = "absent"
    with pytest.raises(SegmentationError, match=r"ONNX Runtime: .*absent"):
        segmenter.segment([drawn("disc")[0]], ["ball"])


def test_freeing_the_batch_twice_changes_nothing(mean_model):
    freed = with_free_batch(mean_model().read_bytes())
    assert with_free_batch(freed) == freed
    assert freed.count(b"batch") == 2


def test_the_model_file_is_part_of_the_config(mean_model):
    config = U2NetSegmenter(mean_model()).config()
    assert len(config["model_sha256"]) == 64
    assert config["provider"] == "CPUExecutionProvider"


def test_tall_and_wide_images_keep_their_shape(mean_model):
    images = [np.asarray(Image.new("RGB", size, "red")) for size in ((5, 300), (300, 5), (1, 1))]
    masks = U2NetSegmenter(mean_model()).segment(images, ["a", "b", "c"])
    assert [mask.shape for mask in masks] == [(300, 5), (5, 300), (1, 1)]


@pytest.mark.parametrize("argument", ["n_threads", "batch_size"])
def test_counts_must_be_positive(mean_model, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be at least 1"):
        U2NetSegmenter(mean_model(), **{argument: 0})
