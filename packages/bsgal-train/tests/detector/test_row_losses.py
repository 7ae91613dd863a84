"""The reported rows, against detectron2's own losses and its matching."""

# ruff: noqa: E402 - detectron2 must be made importable before anything below imports it.

from __future__ import annotations

from bsgal_train.data import LabelledImage
from bsgal_train.machine.detectron2_shims import ensure_detectron2

ensure_detectron2()

from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from torch import Tensor, nn

from bsgal_train.detector import build_detector, training_losses
from bsgal_train.detector.agreement import agreed, keeping_to
from bsgal_train.detector.federated import FederatedClasses
from bsgal_train.detector.heads import Fp32MaskHead, SigmoidOutputLayers
from bsgal_train.detector.row_losses import (
    BACKGROUND,
    RowLosses,
    recorded,
)
from bsgal_train.detector.rpn import RowRPN
from bsgal_train.recipe import Recipe


@pytest.fixture
def detector(tiny_recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(tiny_recipe.detector, n_classes=3)


def record(detector: nn.Module, inputs: Any, **options: Any) -> tuple[dict[str, Tensor], Any]:
    with recorded() as found:
        losses = training_losses(detector, inputs, "fp32", seed=1, **options)
    return losses, {one.name: one for one in found}


def test_every_loss_is_the_sum_of_its_rows(
    detector: nn.Module, tiny_inputs: list[LabelledImage]
) -> None:
    losses, found = record(detector, tiny_inputs)

    assert set(found) == set(losses)
    for name, loss in losses.items():
        one: RowLosses = found[name]
        torch.testing.assert_close(one.per_row.sum() / one.normalizer, loss)
        torch.testing.assert_close(one.total(torch.ones_like(one.rows.image).bool()), loss)
        assert len(one.per_row) == len(one.rows.source) == len(one.rows.boxes_xyxy) > 0


def test_losses_are_those_of_detectron2(
    detector: nn.Module, tiny_inputs: list[LabelledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock: dict[str, Tensor] = {}
    row_rpn, row_box, row_mask = RowRPN.losses, SigmoidOutputLayers.losses, Fp32MaskHead.forward

    def rpn(self: Any, anchors: Any, logits: Any, labels: Any, deltas: Any, matches: Any) -> Any:
        boxes = [match[:, :4] for match in matches]
        stock.update(RPN.losses(self, anchors, logits, labels, deltas, boxes))
        return row_rpn(self, anchors, logits, labels, deltas, matches)

    def box(self: Any, predictions: Any, proposals: Any) -> Any:
        def joined(name: str) -> Tensor:
            return torch.cat([getattr(p, name).tensor for p in proposals])

        gt_classes = torch.cat([p.gt_classes for p in proposals])
        stock["loss_box_reg"] = FastRCNNOutputLayers.box_reg_loss(
            self, joined("proposal_boxes"), joined("gt_boxes"), predictions[1], gt_classes
        )
        return row_box(self, predictions, proposals)

    def mask(self: Any, features: Any, instances: Any) -> Any:
        stock["loss_mask"] = mask_rcnn_loss(self.layers(features), instances)
        return row_mask(self, features, instances)

    monkeypatch.setattr(RowRPN, "losses", rpn)
    monkeypatch.setattr(SigmoidOutputLayers, "losses", box)
    monkeypatch.setattr(Fp32MaskHead, "forward", mask)
    losses = training_losses(detector, tiny_inputs, "fp32", seed=1)

    assert set(stock) == {"loss_rpn_cls", "loss_rpn_loc", "loss_box_reg", "loss_mask"}
    for name, loss in stock.items():
        torch.testing.assert_close(losses[name], loss)


def test_rows_name_the_object_they_are_matched_to(
    detector: nn.Module, tiny_inputs: list[LabelledImage]
) -> None:
    # The first object of each image counts as pasted object 0.
    tiny_inputs = [replace(one, source=torch.tensor([0, -1])) for one in tiny_inputs]
    _, found = record(detector, tiny_inputs)

    for one in found.values():
        rows = one.rows
        assert set(rows.image.tolist()) == {0, 1}
        for k in (rows.source >= -1).nonzero().flatten().tolist():
            image = tiny_inputs[int(rows.image[k])]
            gt = image.boxes_xyxy[image.source == rows.source[k]][0]
            corner = torch.maximum(gt[:2], rows.boxes_xyxy[k, :2])
            overlap = (torch.minimum(gt[2:], rows.boxes_xyxy[k, 2:]) - corner).clamp(min=0).prod()
            assert overlap > 0
    assert (found["loss_cls"].rows.source == BACKGROUND).any()
    assert not (found["loss_mask"].rows.source == BACKGROUND).any()


def test_rows_tell_the_place_of_the_object_they_are_matched_to(
    detector: nn.Module, tiny_inputs: list[LabelledImage]
) -> None:
    # In another order than the places.
    tiny_inputs = [replace(one, source=torch.tensor([1, 0])) for one in tiny_inputs]
    _, found = record(detector, tiny_inputs)

    for one in found.values():
        rows = one.rows
        foreground = rows.source != BACKGROUND
        assert set(rows.object[foreground].tolist()) == {0, 1}
        assert torch.equal(rows.source[foreground], 1 - rows.object[foreground])
        assert (rows.object[~foreground] == -1).all()


def test_an_image_without_objects_has_background_rows_only(
    detector: nn.Module, tiny_inputs: list[LabelledImage]
) -> None:
    losses, found = record(detector, [tiny_inputs[0].only(slice(0))])

    assert all(loss.isfinite() for loss in losses.values())
    assert (found["loss_cls"].rows.source == BACKGROUND).all()
    assert (found["loss_cls"].rows.object == -1).all()
    assert len(found["loss_mask"].per_row) == 0
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]


def test_what_is_sampled_in_an_image_does_not_depend_on_its_company(
    detector: nn.Module, tiny_inputs: list[LabelledImage]
) -> None:
    _, both = record(detector, tiny_inputs, image_keys=[7, 8])
    _, alone = record(detector, tiny_inputs[1:], image_keys=[8])

    for name, one in both.items():
        second = one.rows.image == 1
        torch.testing.assert_close(one.rows.boxes_xyxy[second], alone[name].rows.boxes_xyxy)
        torch.testing.assert_close(one.per_row[second], alone[name].per_row, rtol=1e-4, atol=1e-5)


def test_other_keys_sample_otherwise(detector: nn.Module, tiny_inputs: list[LabelledImage]) -> None:
    boxes = [
        record(detector, tiny_inputs, image_keys=keys)[1]["loss_cls"].rows.boxes_xyxy
        for keys in ([7, 8], [7, 8], [8, 9])
    ]

    assert torch.equal(boxes[0], boxes[1])
    assert not torch.equal(boxes[0], boxes[2])


def test_a_pass_that_keeps_to_another_has_its_divisors_and_classes(
    tiny_recipe: Recipe, tiny_inputs: list[LabelledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = tiny_recipe.override("detector.federated_classes=2").detector
    detector = build_detector(config, 3, image_counts=[6, 6, 6])
    with agreed() as agreements:
        _, both = record(detector, tiny_inputs, image_keys=[7, 8])
    monkeypatch.delattr(FederatedClasses, "draw")

    with keeping_to(agreements):
        losses, alone = record(detector, tiny_inputs[1:], image_keys=[8])

    for name, one in both.items():
        assert alone[name].normalizer == one.normalizer
        own = one.total(one.rows.image == 1)
        torch.testing.assert_close(losses[name], own, rtol=1e-4, atol=1e-5)


def test_an_object_of_no_class_that_takes_part_still_has_its_own(
    tiny_recipe: Recipe, tiny_inputs: list[LabelledImage]
) -> None:
    torch.manual_seed(0)
    config = tiny_recipe.override("detector.federated_classes=1").detector
    detector = build_detector(config, 3, image_counts=[6, 6, 6])
    with agreed() as agreements:
        record(detector, tiny_inputs)
    all_classes = agreements["classes of loss_cls"]
    assert len(all_classes) == 3

    found = []
    for taking_part in (all_classes, all_classes[:0]):
        with keeping_to(agreements | {"classes of loss_cls": taking_part}):
            found.append(record(detector, tiny_inputs)[1]["loss_cls"])
    full, bare = found

    foreground = full.rows.source != BACKGROUND
    assert foreground.any()
    assert (bare.per_row[~foreground] == 0).all()
    assert (bare.per_row[foreground] > 0).all()
    # What is missing are the two other classes of each row.
    assert (bare.per_row[foreground] < full.per_row[foreground]).all()
