from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from bsgal_train.detector import build_detector, load_weights, save_detector
from bsgal_train.detector.weights import DetectorWeightsError
from bsgal_train.recipe import Recipe

NAMES = ["a", "b", "c"]
CLASS_LAYERS = {
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.cls_score.bias",
}


@pytest.fixture
def stored(tmp_path: Path, tiny_recipe: Recipe) -> Path:
    torch.manual_seed(1)
    detector = build_detector(tiny_recipe.detector, len(NAMES))
    save_detector(tmp_path, detector, tiny_recipe.detector, NAMES, dtype=torch.float16)
    return tmp_path


def test_a_detector_comes_back_but_for_rounding(stored: Path, tiny_recipe: Recipe) -> None:
    torch.manual_seed(1)
    original = build_detector(tiny_recipe.detector, len(NAMES))
    detector = build_detector(tiny_recipe.detector, len(NAMES))

    fresh = load_weights(detector, str(stored), NAMES)

    assert fresh == ()
    for name, value in detector.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, original.state_dict()[name].half().float()), name


def test_other_classes_keep_only_the_class_layers_random(
    stored: Path, tiny_recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    detector = build_detector(tiny_recipe.detector, 5)
    before = {name: value.clone() for name, value in detector.state_dict().items()}

    with caplog.at_level(logging.INFO):
        fresh = load_weights(detector, str(stored), list("abcde"))

    assert set(fresh) == CLASS_LAYERS
    for name in CLASS_LAYERS:
        assert torch.equal(detector.state_dict()[name], before[name])
        assert name in caplog.text


def test_as_many_but_other_classes_are_not_taken_for_the_same(
    stored: Path, tiny_recipe: Recipe
) -> None:
    detector = build_detector(tiny_recipe.detector, len(NAMES))

    assert set(load_weights(detector, str(stored), ["a", "c", "b"])) == CLASS_LAYERS


def test_class_specific_masks_are_class_layers_too(tmp_path: Path, tiny_recipe: Recipe) -> None:
    config = tiny_recipe.override("detector.class_agnostic_masks=false").detector
    save_detector(tmp_path, build_detector(config, 3), config, NAMES)

    fresh = load_weights(build_detector(config, 2), str(tmp_path), ["x", "y"])

    assert {name for name in fresh if "mask_head.predictor" in name}


def test_weights_of_another_shape_raise_naming_the_first(stored: Path, tiny_recipe: Recipe) -> None:
    other = tiny_recipe.override("detector.box_features=48").detector

    with pytest.raises(DetectorWeightsError, match=r"tensors do not fit .* stored \(32"):
        load_weights(build_detector(other, 3), str(stored), NAMES)


def test_a_folder_without_a_detector_raises(tmp_path: Path, tiny_recipe: Recipe) -> None:
    with pytest.raises(DetectorWeightsError, match=r"detector\.json is missing"):
        load_weights(build_detector(tiny_recipe.detector, 3), str(tmp_path), NAMES)


def test_cut_off_weights_raise(stored: Path, tiny_recipe: Recipe) -> None:
    path = stored / "detector.safetensors"
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(DetectorWeightsError, match="cannot be read"):
        load_weights(build_detector(tiny_recipe.detector, 3), str(stored), NAMES)


def test_another_schema_raises(stored: Path, tiny_recipe: Recipe) -> None:
    path = stored / "detector.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": "bsgal.detector/9"}))

    with pytest.raises(DetectorWeightsError, match=r"bsgal\.detector/9"):
        load_weights(build_detector(tiny_recipe.detector, 3), str(stored), NAMES)
