from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from bsgal_mask import (
    Clip,
    ClipSegSegmenter,
    MissingModelError,
    Sam,
    SamBackgroundSegmenter,
    SegmentationError,
    build_pool,
)


@pytest.mark.parametrize("build", [Clip, ClipSegSegmenter, Sam])
def test_a_missing_model_says_how_to_get_it(build, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(MissingModelError, match="hf download owner/no-such --revision REVISION"):
        build("owner/no-such")
    with pytest.raises(MissingModelError, match=r"it must hold config\.json"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("build", "extra"), [(Clip, "clip"), (ClipSegSegmenter, "clipseg"), (Sam, "sam")]
)
def test_missing_libraries_say_how_to_install_them(build, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingModelError, match=rf"pip install 'bsgal-mask\[{extra}\]'"):
        build(tmp_path)


def test_a_device_that_is_not_there_is_an_error_not_another_device(clip_folder):
    import torch

    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"`device` '{absent}' is not available .* no other"):
        Clip(clip_folder, device=absent)
    with pytest.raises(ValueError, match="`device` 'toaster' is not available"):
        Clip(clip_folder, device="toaster")


def test_another_kind_of_model_is_refused_not_filled_with_random_weights(clip_folder, sam_folder):
    with pytest.raises(ValueError, match="is not a SamModel: its weights lack"):
        Sam(clip_folder)
    with pytest.raises(ValueError, match="is not a CLIPModel: its weights lack"):
        Clip(sam_folder)


def test_damaged_weights_are_named(clip_folder, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(clip_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(MissingModelError, match=r"cannot load a model from the folder .*cut"):
        Clip(folder)


def test_only_safetensors_are_read(clip_folder, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(clip_folder, folder)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(MissingModelError, match=r"\*\.safetensors"):
        Clip(folder)


def test_the_fingerprint_follows_the_weights_not_the_folder(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy, other = tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(clip_folder, folder)
    tensors = load_file(other / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"] + 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    first, second, third = (
        Clip(folder).config()["weights_sha256"] for folder in (clip_folder, copy, other)
    )
    assert first == second != third


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_run_where_it_is_asked_for(sam_folder, clipseg_folder, dtype):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    segmenter = ClipSegSegmenter(clipseg_folder, dtype=dtype)
    assert segmenter.config()["dtype"] == dtype
    (mask,) = segmenter.segment([image], ["cup"])
    assert mask.dtype == np.float32
    assert np.isfinite(mask).all()
    points = [np.zeros((4, 2), np.float32)]
    (mask,) = Sam(sam_folder, dtype=dtype).masks_at_points([image], points)
    assert np.isfinite(mask).all()


def test_an_unknown_dtype_is_refused(clip_folder):
    with pytest.raises(ValueError, match="`dtype` must be one of float32, float16, bfloat16"):
        Clip(clip_folder, dtype="int8")


def test_too_little_memory_fails_the_batch_and_then_each_image_has_its_own(
    sam_folder, make_image_set, drawn, tmp_path, monkeypatch, manifest_of
):
    import torch

    sam = Sam(sam_folder, batch_size=4)
    forward = sam._checkpoint.model.forward

    def small_device(**inputs):
        if len(inputs["pixel_values"]) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(**inputs)

    monkeypatch.setattr(sam._checkpoint.model, "forward", small_device)
    images = make_image_set({name: drawn("disc")[0] for name in "abc"})
    method = SamBackgroundSegmenter(sam)
    with pytest.raises(SegmentationError, match=r"too little memory .* a smaller batch"):
        method.segment([drawn("disc")[0]] * 2, ["", ""])
    build_pool(images, tmp_path / "pool", methods=[method], filters=[])
    assert [row["method"] for row in manifest_of(tmp_path / "pool")] == ["sam_background"] * 3
