from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from bsgal_train.data import LabelledImage
from bsgal_train.detector import build_detector, detector_inputs, training_losses
from bsgal_train.recipe import Recipe
from bsgal_train.selection.scoring.passes import candidate_loss, gradients, reference_loss


@pytest.fixture
def detector(tiny_recipe: Recipe) -> Any:
    torch.manual_seed(0)
    return build_detector(tiny_recipe.detector, n_classes=3)


def mark_pasted(images: list[LabelledImage], sources: list[int]) -> None:
    images[:] = [replace(one, source=torch.tensor(sources)) for one in images]


def test_reference_loss_is_the_mean_over_real_boxes(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    loss = reference_loss(detector, tiny_inputs, "fp32", seed=5)

    expected = 0.0
    n_boxes = 0
    for one in tiny_inputs:
        (given,) = detector_inputs([one])
        features = detector.backbone(detector.preprocess_image([given]).tensor)
        levels = [features[level] for level in detector.roi_heads.in_features]
        for index, class_index in enumerate(one.class_indices.tolist()):
            box = given["instances"].gt_boxes[index]
            pooled = detector.roi_heads.box_pooler(levels, [box])
            logits = detector.roi_heads.box_predictor(detector.roi_heads.box_head(pooled))[0]
            target = functional.one_hot(torch.tensor([class_index]), 3).float()
            term = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
            expected += float(term.detach())
            n_boxes += 1
    assert loss is not None
    assert float(loss.detach()) == pytest.approx(expected / n_boxes, rel=1e-5)


def test_reference_images_without_objects_add_nothing(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    empty = tiny_inputs[1].only(slice(0))

    with_empty = reference_loss(detector, [tiny_inputs[0], empty], "fp32", seed=5)
    without = reference_loss(detector, [tiny_inputs[0]], "fp32", seed=5)

    assert with_empty is not None
    assert without is not None
    torch.testing.assert_close(with_empty.detach(), without.detach())
    assert reference_loss(detector, [empty], "fp32", seed=5) is None


def test_candidate_loss_is_none_without_pasted_objects(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    assert candidate_loss(detector, tiny_inputs, "fp32", seed=0) is None


def test_candidate_losses_of_parts_add_up(detector: Any, tiny_inputs: list[LabelledImage]) -> None:
    def of(sources: list[int]) -> float:
        mark_pasted(tiny_inputs, sources)
        loss = candidate_loss(detector, tiny_inputs, "fp32", seed=0)
        assert loss is not None
        return float(loss.detach())

    assert of([0, 1]) == pytest.approx(of([0, -1]) + of([-1, 1]), rel=1e-5)


def test_candidate_loss_of_all_objects_plus_background_is_the_training_loss(
    detector: Any, tiny_inputs: list[LabelledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same proposals are sampled in the scoring pass and in the training step."""
    mark_pasted(tiny_inputs, [0, 1])
    loss = candidate_loss(detector, tiny_inputs, "fp32", seed=5)
    sampled: list[Any] = []
    losses = type(detector.roi_heads.box_predictor).losses
    n_classes = detector.roi_heads.num_classes

    def spy(self: Any, predictions: Any, proposals: list[Any]) -> Any:
        sampled.extend(proposals)
        spied.append(predictions[0].detach())
        return losses(self, predictions, proposals)

    spied: list[torch.Tensor] = []
    monkeypatch.setattr(type(detector.roi_heads.box_predictor), "losses", spy)
    training_losses(detector, tiny_inputs, "fp32", seed=5)

    gt_classes = torch.cat([p.gt_classes for p in sampled])
    foreground = gt_classes < n_classes
    targets = functional.one_hot(gt_classes[foreground], n_classes).float()
    expected = functional.binary_cross_entropy_with_logits(
        spied[0][foreground], targets, reduction="sum"
    ) / len(gt_classes)
    assert loss is not None
    torch.testing.assert_close(loss.detach(), expected)


def test_scoring_leaves_the_detector_as_it_was(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    mark_pasted(tiny_inputs, [0, 1])
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    generator = torch.random.get_rng_state()

    loss = candidate_loss(detector, tiny_inputs, "fp32", seed=0)
    assert loss is not None
    gradients(loss, dict(detector.named_parameters()))

    assert all(p.grad is None for p in detector.parameters())
    assert all(module.training for module in detector.modules())
    assert torch.equal(torch.random.get_rng_state(), generator)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])


def test_parameters_outside_the_class_branch_have_no_gradient(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    loss = reference_loss(detector, tiny_inputs, "fp32", seed=5)
    assert loss is not None

    found = gradients(loss, dict(detector.named_parameters()))

    assert set(found) == {name for name, _ in detector.named_parameters()}
    assert found["roi_heads.box_predictor.cls_score.weight"] is not None
    assert found["roi_heads.mask_head.predictor.weight"] is None
    assert found["roi_heads.box_predictor.bbox_pred.weight"] is None


def test_an_image_without_objects_has_only_background(
    detector: Any, tiny_inputs: list[LabelledImage]
) -> None:
    mark_pasted(tiny_inputs, [0, 1])
    tiny_inputs[1] = tiny_inputs[1].only(slice(0))

    loss = candidate_loss(detector, tiny_inputs, "fp32", seed=0)

    assert loss is not None
    assert torch.isfinite(loss)
