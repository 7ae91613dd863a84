from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bsgal_train.data.skipped_files import SkippedFiles
from bsgal_train.engine.optimizer import build_optimizer, peak_learning_rate
from bsgal_train.engine.run import train
from bsgal_train.engine.step import TrainingSteps
from bsgal_train.engine.trainer import Trainer
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import OptimizerConfig, Recipe
from bsgal_train.run_folder.run_log import read_metrics
from bsgal_train.selection import Selected


def step_of(config: OptimizerConfig, precision: Any = "fp32") -> tuple[nn.Linear, OptimizerStep]:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    return layer, OptimizerStep(layer, build_optimizer(layer, config), config, precision)


def gradient(layer: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])


def test_norm_scales_all_gradients_down_together() -> None:
    layer, step = step_of(OptimizerConfig(clip_norm=0.5))
    step.backward(10 * layer.weight.sum())
    before = gradient(layer).clone()

    norm = step.clip()

    torch.testing.assert_close(norm, before.norm())
    torch.testing.assert_close(gradient(layer), 0.5 * before / before.norm())


def test_value_cuts_each_entry() -> None:
    layer, step = step_of(OptimizerConfig(clip_norm=0.5, clip_type="value"))
    weights = torch.linspace(-2, 2, 12).reshape(3, 4)
    step.backward((weights * layer.weight).sum())

    norm = step.clip()

    torch.testing.assert_close(norm, weights.norm())
    torch.testing.assert_close(layer.weight.grad, weights.clamp(-0.5, 0.5))


def test_half_precision_scales_losses_and_leaves_out_a_step_that_overflows() -> None:
    layer, step = step_of(OptimizerConfig(), "fp16")
    before = layer.weight.detach().clone()
    step.backward(layer.weight.sum())
    assert float(gradient(layer).max()) > 1000
    step.unscaled_gradients()
    torch.testing.assert_close(layer.weight.grad, torch.ones(3, 4))
    step.apply()
    after = layer.weight.detach().clone()
    assert not torch.equal(after, before)
    scale = step.state_dict()["scaler"]["scale"]

    step.backward(layer.weight.sum() * torch.inf)
    step.unscaled_gradients()
    step.apply()

    assert torch.equal(layer.weight, after)
    assert step.state_dict()["scaler"]["scale"] == scale / 2


@dataclass
class Sample:
    position: int
    image: torch.Tensor
    pastes: tuple[Any, ...] = ()
    original: Any = field(default_factory=lambda: SimpleNamespace(image_id=0))


class MeanOfSquares:
    """A selection that judges nothing; its loss is a mean over the images it is given."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, detector: nn.Module, samples: Any, step: int, seed: int) -> Selected:
        self.calls.append(len(samples))
        images = torch.stack([sample.image for sample in samples])
        return Selected(
            losses={"loss_square": detector(images).square().mean()},
            statistics={"n_pasted": float(len(samples)), "threshold": 0.25},
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def run_small(folder: Path, *assignments: str) -> tuple[nn.Module, list[int], list[dict[str, Any]]]:
    recipe = Recipe().override(
        "schedule.n_steps=3", "schedule.batch_size=8", "schedule.log_every=1", *assignments
    )
    torch.manual_seed(0)
    layer = nn.Linear(5, 2)
    images = torch.randn(24, 5)

    def batches(start: int) -> Iterator[list[Sample]]:
        for first in range(start, 24, 8):
            yield [Sample(first + i, images[first + i]) for i in range(8)]

    selection = MeanOfSquares()
    optimizer = build_optimizer(layer, recipe.optimizer)
    update = OptimizerStep(layer, optimizer, recipe.optimizer, recipe.detector.precision)
    Trainer(
        recipe=recipe,
        steps=TrainingSteps(recipe, layer, update, selection, SkippedFiles()),
        batches=batches,  # type: ignore[arg-type]  # stand-ins for samples
        folder=folder,
    ).run()
    return layer, selection.calls, read_metrics(folder / "metrics.jsonl")


def test_parts_of_a_batch_give_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, _, rows = run_small(tmp_path / "whole")
    parts, calls, rows_of_parts = run_small(tmp_path / "parts", "schedule.n_accumulate=4")

    assert calls == [2] * 12
    torch.testing.assert_close(parts.weight, whole.weight)
    for one, other in zip(rows, rows_of_parts, strict=True):
        for name in ("loss", "loss_square", "gradient_norm", "n_pasted", "threshold"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name


def test_parts_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(ValueError, match="n_accumulate must divide schedule"):
        Recipe().override("schedule.n_accumulate=3")


def test_the_rate_follows_the_root_of_the_batch_size_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = Recipe().override(
        "optimizer.lr=1e-4", "optimizer.lr_batch_size=16", "schedule.batch_size=4",
        "schedule.n_steps=90000",
    )  # fmt: skip

    with caplog.at_level(logging.WARNING):
        assert peak_learning_rate(recipe) == pytest.approx(0.5e-4)
    assert "meant for batches of 16; with 4 it is 5e-05" in caplog.text
    assert "360000 steps would be needed instead of 90000" in caplog.text
    assert peak_learning_rate(recipe.override("schedule.batch_size=16")) == 1e-4
    assert peak_learning_rate(recipe.override("optimizer.lr_batch_size=0")) == 1e-4


class StoppedError(Exception):
    """The run was cut off by the test."""


def stop_at_three(done: int, total: int, detail: str) -> None:
    if done == 3:
        raise StoppedError


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_keeps_average_and_scale(
    precision: str, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(
        "optimizer.ema_decay=0.5", "schedule.n_accumulate=2", "selection.mode=paste_all",
        f"detector.precision={precision}", "data.val_json=",
    )  # fmt: skip
    train(recipe, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "cut", progress=stop_at_three)
    train(recipe, tmp_path / "cut")

    whole, cut = (load_file(tmp_path / f"{name}/detector.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    # What is stored is the average, not the last weights.
    last = load_file(tmp_path / "whole/checkpoints/step-00000005/model.safetensors")
    assert any(not torch.equal(value, last[name]) for name, value in whole.items())


def test_everything_decays_if_it_is_to() -> None:
    layer = nn.Linear(2, 2)

    groups = build_optimizer(layer, OptimizerConfig(weight_decay=0.3, decay_all=True)).param_groups

    assert [group["weight_decay"] for group in groups] == [0.3, 0.3]
