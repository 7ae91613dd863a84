from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bsgal_train.data import LabelledImage
from bsgal_train.detector import autocast, best_device, build_detector, training_losses
from bsgal_train.detector.heads import class_targets
from bsgal_train.recipe import DetectorConfig, Recipe

LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}


def test_the_default_detector_fits_twelve_megabytes_in_half_precision() -> None:
    detector = build_detector(DetectorConfig(), n_classes=40)

    n_parameters = sum(p.numel() for p in detector.parameters())

    assert 1e6 < n_parameters < 6.2e6


def test_no_module_keeps_batch_statistics() -> None:
    detector = build_detector(DetectorConfig(), n_classes=2)

    names = {type(module).__name__ for module in detector.modules()}

    assert not {name for name in names if "BatchNorm" in name}
    assert "GroupNorm" in names


def test_an_untrained_detector_gives_each_class_the_prior(tiny_recipe: Recipe) -> None:
    detector: Any = build_detector(tiny_recipe.detector, n_classes=5)

    bias = detector.roi_heads.box_predictor.cls_score.bias

    assert bias.shape == (5,)
    torch.testing.assert_close(torch.sigmoid(bias), torch.full((5,), 0.01))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_finite_fp32_scalars(
    tiny_inputs: list[LabelledImage], tiny_recipe: Recipe, precision: str
) -> None:
    torch.manual_seed(0)
    detector = build_detector(tiny_recipe.detector, n_classes=3)

    losses = training_losses(detector, tiny_inputs, precision, seed=0)

    assert set(losses) == LOSSES
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert all(math.isfinite(float(value.detach())) for value in losses.values())


def test_losses_are_a_function_of_the_seed_and_leave_the_generator_alone(
    tiny_inputs: list[LabelledImage], tiny_recipe: Recipe
) -> None:
    detector = build_detector(tiny_recipe.detector, n_classes=3)
    before = torch.random.get_rng_state()

    def total(seed: int) -> float:
        losses = training_losses(detector, tiny_inputs, "fp32", seed=seed)
        return sum(float(value.detach()) for value in losses.values())

    assert total(seed=1) == total(seed=1)
    assert total(seed=1) != total(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_background_has_no_class_target() -> None:
    targets = class_targets(torch.tensor([0, 2, 3]), n_classes=3)

    assert targets.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_an_image_without_objects_trains(
    tiny_inputs: list[LabelledImage], tiny_recipe: Recipe
) -> None:
    detector = build_detector(tiny_recipe.detector, n_classes=3)
    empty = [one.only(slice(0)) for one in tiny_inputs]

    losses = training_losses(detector, empty, "fp32", seed=0)

    assert all(math.isfinite(float(value.detach())) for value in losses.values())


def test_a_backbone_without_the_strides_is_refused() -> None:
    with pytest.raises(ValueError, match="has no feature map of stride 4"):
        build_detector(
            DetectorConfig(backbone="vit_tiny_patch16_224", backbone_channels=()), n_classes=2
        )


def test_zero_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="n_classes"):
        build_detector(DetectorConfig(), n_classes=0)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_layers_run_at_the_precision_on_the_device(precision: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(3, 2).to(best_device())

    with autocast(precision):
        assert layer(torch.zeros(1, 3, device=best_device())).dtype == dtype
    assert layer(torch.zeros(1, 3, device=best_device())).dtype == torch.float32
