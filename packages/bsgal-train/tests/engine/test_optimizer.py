from __future__ import annotations

import pytest
import torch

from bsgal_train.detector import build_detector
from bsgal_train.engine.optimizer import build_optimizer, learning_rate
from bsgal_train.recipe import OptimizerConfig, Recipe, ScheduleConfig


def test_the_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    schedule = ScheduleConfig(n_steps=100, warmup_steps=10, final_lr_factor=0.1)

    rates = [learning_rate(step, 2.0, schedule) for step in range(1, 101)]

    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[54] == pytest.approx(0.5 * (2.0 + 0.2))
    assert rates[-1] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_without_warm_up_the_first_rate_is_near_the_peak() -> None:
    schedule = ScheduleConfig(n_steps=1000, warmup_steps=0)

    assert learning_rate(1, 2.0, schedule) == pytest.approx(2.0, rel=1e-4)


def test_norms_and_biases_do_not_decay(tiny_recipe: Recipe) -> None:
    detector = build_detector(tiny_recipe.detector, n_classes=2)

    groups = build_optimizer(detector, OptimizerConfig(weight_decay=0.3)).param_groups

    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    n_parameters = sum(p.numel() for group in groups for p in group["params"])
    assert n_parameters == sum(p.numel() for p in detector.parameters())
    assert all(isinstance(p, torch.nn.Parameter) for p in groups[0]["params"])
