from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from bsgal_train.data import LabelledImage
from bsgal_train.detector import (
    build_detector,
    detector_inputs,
    load_weights,
    save_detector,
    training_losses,
)
from bsgal_train.detector.row_losses import BACKGROUND, recorded
from bsgal_train.engine.predict import predict_each
from bsgal_train.recipe import DetectorConfig, Recipe

LOSSES = {
    *(f"{name}_stage{stage}" for name in ("loss_cls", "loss_box_reg") for stage in range(3)),
    *("loss_mask", "loss_centernet_pos", "loss_centernet_neg", "loss_centernet_box"),
}
IMAGE_COUNTS = (1, 4, 9)


@pytest.fixture
def config(tiny_recipe: Recipe) -> DetectorConfig:
    return dataclasses.replace(
        tiny_recipe.detector,
        architecture="centernet2",
        head_norm="none",
        n_box_convs=0,
        n_box_fcs=2,
        federated_classes=2,
    )


@pytest.fixture
def detector(config: DetectorConfig) -> Any:
    torch.manual_seed(0)
    return build_detector(config, 3, IMAGE_COUNTS)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_losses_are_finite_fp32_scalars(
    detector: Any, tiny_inputs: list[LabelledImage], precision: Any
) -> None:
    losses = training_losses(detector, tiny_inputs, precision, seed=0)

    assert set(losses) == LOSSES
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert all(math.isfinite(float(value.detach())) for value in losses.values())


def test_losses_are_a_function_of_the_seed(detector: Any, tiny_inputs: list[LabelledImage]) -> None:
    def total(seed: int) -> float:
        losses = training_losses(detector, tiny_inputs, "fp32", seed=seed)
        return sum(float(value.detach()) for value in losses.values())

    assert total(seed=1) == total(seed=1)
    assert total(seed=1) != total(seed=2)


def test_an_image_without_objects_trains(detector: Any, tiny_inputs: list[LabelledImage]) -> None:
    tiny_inputs[0] = tiny_inputs[0].only(slice(0))

    losses = training_losses(detector, tiny_inputs, "fp32", seed=0)
    torch.stack(list(losses.values())).sum().backward()

    assert all(math.isfinite(float(value.detach())) for value in losses.values())


def test_it_learns_a_handful_of_images_and_finds_their_objects(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for step in range(50):
        losses = training_losses(detector, tiny_inputs, "fp32", seed=step)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    tests = [
        {**one, "height": one["image"].shape[1], "width": one["image"].shape[2]}
        for one in detector_inputs(tiny_inputs)
    ]
    found: list[dict[str, Any]] = []
    predict_each(detector, tests, [0, 1, 2], found.extend)
    for one in tiny_inputs:
        own = [item for item in found if item["image_id"] == one.image_id]
        best = sorted(own, key=lambda item: -item["score"])[: len(one)]
        assert {item["category_id"] for item in best} == set(one.class_indices.tolist())
        x, y, width, height = best[0]["bbox"]
        predicted = torch.tensor([[x, y, x + width, y + height]])
        assert float(box_iou(predicted, one.boxes_xyxy).max()) > 0.5


def test_every_row_says_which_object_it_stands_for(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    # Name the objects: 0, 1, ... in each image, as if all were pasted.
    tiny_inputs = [replace(one, source=torch.arange(len(one))) for one in tiny_inputs]
    seen: dict[str, list[int]] = {}
    for stage in range(3):
        for part in ("box_head", "box_predictor"):
            name = f"roi_heads.{part}.{stage}"
            detector.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: seen.setdefault(name, []).append(
                    len(args[0])
                )
            )

    with recorded() as losses:
        totals = training_losses(detector, tiny_inputs, "fp32", seed=0)

    assert {one.name for one in losses} == set(totals)
    for one in losses:
        torch.testing.assert_close(one.total(), totals[one.name])
        assert len(one.per_row) == len(one.rows.source) == len(one.rows.boxes_xyxy)
        for module in one.modules:
            if "box" in module:
                assert seen[module] == [len(one.rows.source)]
        for image, inputs in enumerate(tiny_inputs):
            sources = one.rows.source[one.rows.image == image]
            assert set(sources.tolist()) <= {BACKGROUND, *range(len(inputs))}
        places = torch.where(one.rows.source == BACKGROUND, -1, one.rows.source)
        assert torch.equal(one.rows.object, places)
    by_name = {one.name: one for one in losses}
    # Each object's own box is among the proposals of the first stage and at its centre's place.
    for name in ("loss_cls_stage0", "loss_centernet_pos", "loss_mask"):
        rows = by_name[name].rows
        for image, inputs in enumerate(tiny_inputs):
            own = set(rows.source[rows.image == image].tolist()) - {BACKGROUND}
            assert own == set(range(len(inputs)))


def test_later_stages_match_at_a_higher_overlap(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    with recorded() as losses:
        training_losses(detector, tiny_inputs, "fp32", seed=0)

    for stage, least in enumerate((0.6, 0.7, 0.8)):
        rows = next(one.rows for one in losses if one.name == f"loss_cls_stage{stage}")
        foreground = rows.source != BACKGROUND
        for image, inputs in enumerate(tiny_inputs):
            boxes = rows.boxes_xyxy[rows.image == image]
            overlap = box_iou(boxes, inputs.boxes_xyxy).amax(1)
            expected = overlap >= least
            assert torch.equal(foreground[rows.image == image], expected)


def test_score_is_the_root_of_class_probability_times_proposal_score(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    detector.eval()
    heads = detector.roi_heads
    for stage in range(3):
        predictor = heads.box_predictor[stage]
        torch.nn.init.zeros_(predictor.cls_score.weight)
        torch.nn.init.zeros_(predictor.bbox_pred.weight)
        probabilities = torch.tensor([0.1, 0.2, 0.3]) * (stage + 1)
        predictor.cls_score.bias.data = torch.logit(probabilities)
        predictor.test_score_thresh = 0.0
        predictor.test_topk_per_image = 10_000
        predictor.test_nms_thresh = 1.0
    images = detector.preprocess_image(detector_inputs(tiny_inputs[:1]))
    with torch.no_grad():
        features = detector.backbone(images.tensor)
        proposals, _ = detector.proposal_generator(images, features)
        detections = heads._forward_box(features, proposals)

    scores = proposals[0].objectness_logits
    # Mean probabilities over the stages are twice those of the first.
    expected = (torch.tensor([0.2, 0.4, 0.6]) * scores[:, None]).sqrt()
    torch.testing.assert_close(detections[0].scores.sort().values, expected.flatten().sort().values)


def test_only_classes_that_take_part_get_a_gradient(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    for one in tiny_inputs:
        one.class_indices[:] = 0
    losses = training_losses(detector, tiny_inputs, "fp32", seed=0)
    losses["loss_cls_stage0"].backward()

    gradient = detector.roi_heads.box_predictor[0].cls_score.weight.grad.abs().sum(1)
    assert gradient[0] > 0
    assert int((gradient[1:] > 0).sum()) == 1


def test_it_comes_back_from_disk_and_keeps_shared_layers_for_other_classes(
    config: DetectorConfig, detector: Any, tmp_path: Path
) -> None:
    save_detector(tmp_path, detector, config, ["a", "b", "c"])

    same, other = build_detector(config, 3), build_detector(config, 5)

    assert load_weights(same, str(tmp_path), ["a", "b", "c"]) == ()
    for name, value in same.state_dict().items():
        assert torch.equal(value, detector.state_dict()[name]), name
    fresh = load_weights(other, str(tmp_path), list("abcde"))
    assert set(fresh) == {
        f"roi_heads.box_predictor.{stage}.cls_score.{part}"
        for stage in range(3)
        for part in ("weight", "bias")
    }


def test_image_counts_of_other_classes_are_refused(config: DetectorConfig) -> None:
    with pytest.raises(ValueError, match="one number for each of 3 classes, got 2"):
        build_detector(config, 3, [1, 2])
