from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from bsgal_train.detector import build_detector, load_backbone_weights
from bsgal_train.detector.backbone import TimmBackbone
from bsgal_train.detector.weights import DetectorWeightsError
from bsgal_train.recipe import DetectorConfig

SMALL = {"resnet10t": "frozen", "convnext_atto": "own"}
STAGES = ["res2", "res3", "res4", "res5"]


def whole_model(name: str) -> torch.nn.Module:
    """A timm model with its classifier, and with statistics that are not those it starts with."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_pretrained_weights_give_the_features_of_the_whole_model(name: str) -> None:
    model = whole_model(name)
    backbone = TimmBackbone(name, SMALL[name])
    backbone.train()
    backbone.load_pretrained(model.state_dict())
    images = torch.rand(2, 3, 64, 96)

    with torch.no_grad():
        features = backbone(images)
        expected = model.forward_intermediates(images, intermediates_only=True)[-4:]

    assert list(features) == STAGES
    for stage, one in zip(STAGES, expected, strict=True):
        torch.testing.assert_close(features[stage], one)


def test_transformer_takes_any_image_size_and_gives_normalised_channels_first_maps() -> None:
    backbone = TimmBackbone(
        "swin_tiny_patch4_window7_224", "own", embed_dim=24, depths=(1, 1, 1, 1)
    )

    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 72, 104))

    assert [tuple(features[stage].shape) for stage in STAGES] == [
        (1, 24, 18, 26), (1, 48, 9, 13), (1, 96, 5, 7), (1, 192, 3, 4),
    ]  # fmt: skip
    torch.testing.assert_close(features["res4"].mean(1), torch.zeros(1, 5, 7), atol=1e-5, rtol=0)


def test_drop_path_acts_in_training_only() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("convnext_atto", "own", drop_path=0.9)
    for name, value in backbone.named_parameters():
        if name.endswith("gamma"):
            value.data.fill_(1.0)
    images = torch.rand(1, 3, 32, 32)

    def difference() -> float:
        with torch.no_grad():
            return float((backbone(images)["res5"] - backbone(images)["res5"]).abs().max())

    assert difference() > 0
    backbone.eval()
    assert difference() == 0


def test_frozen_statistics_and_scales_do_not_train() -> None:
    backbone = TimmBackbone("resnet10t", "frozen")

    assert {p.ndim for p in backbone.parameters()} == {4}
    assert not [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_live_batch_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="`resnet10t` has batch normalisation"):
        TimmBackbone("resnet10t", "own")


def config(**changes: Any) -> DetectorConfig:
    return DetectorConfig(backbone="resnet10t", backbone_channels=(8, 8, 16, 16), **changes)


def small_weights() -> dict[str, torch.Tensor]:
    model = timm.create_model("resnet10t", channels=(8, 8, 16, 16), num_classes=7)
    return dict(model.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_read_from_a_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    weights = small_weights()
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    else:
        save_file(weights, path)
    detector: Any = build_detector(
        config(backbone_norm="frozen", backbone_weights=str(path)), n_classes=2
    )

    load_backbone_weights(detector, str(path))

    body = detector.backbone.bottom_up.body.state_dict()
    assert body
    for name, value in body.items():
        assert torch.equal(value, weights[name]), name


def test_weights_of_the_hub_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def fetch(repository: str, weights_only: bool) -> dict[str, torch.Tensor]:
        asked.append((repository, weights_only))
        return small_weights()

    monkeypatch.setattr(
        "bsgal_train.detector.backbone_weights.load_state_dict_from_hf", fetch, raising=True
    )
    detector = build_detector(config(backbone_norm="frozen", backbone_weights="hub:a/b"), 2)

    load_backbone_weights(detector, "hub:a/b")

    assert asked == [("a/b", True)]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "w.safetensors")

    with pytest.raises(DetectorWeightsError, match=r"does not fit detector\.backbone"):
        load_backbone_weights(
            build_detector(config(backbone_norm="group"), 2), str(tmp_path / "w.safetensors")
        )


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(DetectorWeightsError, match=r"no backbone weights at .*none\.pth"):
        load_backbone_weights(build_detector(config(), 2), str(tmp_path / "none.pth"))


def test_a_file_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": small_weights(), "path": Path("x")}, tmp_path / "w.pth")

    with pytest.raises(DetectorWeightsError, match="hold more than tensors"):
        load_backbone_weights(build_detector(config(), 2), str(tmp_path / "w.pth"))


def test_frozen_statistics_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"set detector\.backbone_weights"):
        DetectorConfig(backbone_norm="frozen")
