from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from bsgal_train.detector.centernet.losses import (
    FocalSettings,
    giou_loss_ltrb,
    negative_focal,
    positive_focal,
)


def logit(p: float) -> torch.Tensor:
    return torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)


def test_positive_loss_is_the_formula() -> None:
    # -0.25 (1 - 0.3)^2 log 0.3
    assert float(positive_focal(logit(0.3), FocalSettings())) == pytest.approx(
        -0.25 * 0.49 * math.log(0.3)
    )


@pytest.mark.parametrize("heat", [0.0, 0.4, 1.0])
def test_negative_loss_is_the_formula(heat: float) -> None:
    value = negative_focal(logit(0.3), torch.tensor(heat, dtype=torch.float64), FocalSettings())

    # -0.75 0.3^2 log 0.7 (1 - heat)^4
    assert float(value) == pytest.approx(-0.75 * 0.09 * math.log(0.7) * (1 - heat) ** 4)


def test_a_strong_answer_without_an_object_is_forgiven() -> None:
    cold = torch.zeros((), dtype=torch.float64)

    assert float(negative_focal(logit(0.86), cold, FocalSettings())) == 0.0
    assert float(negative_focal(logit(0.84), cold, FocalSettings())) > 0.0
    assert float(negative_focal(logit(0.86), cold, FocalSettings(ignored_from=1.0))) > 0.0


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = positive_focal(logits, FocalSettings()) + negative_focal(
        logits, torch.zeros(2), FocalSettings(ignored_from=1.0)
    )
    loss.sum().backward()

    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_giou_is_that_of_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.rand(2, 200, 4, generator=generator, dtype=torch.float64) * 9 + 0.01

    def boxes(ltrb: torch.Tensor) -> torch.Tensor:
        return torch.cat([-ltrb[:, :2], ltrb[:, 2:]], dim=1)

    expected = 1 - generalized_box_iou(boxes(predicted), boxes(target)).diagonal()
    torch.testing.assert_close(giou_loss_ltrb(predicted, target), expected)


def test_giou_of_an_empty_box_is_finite_and_has_a_gradient() -> None:
    predicted = torch.zeros(1, 4, requires_grad=True)
    loss = giou_loss_ltrb(predicted, torch.ones(1, 4))
    loss.sum().backward()

    assert float(loss.detach()) == pytest.approx(1.0)
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
