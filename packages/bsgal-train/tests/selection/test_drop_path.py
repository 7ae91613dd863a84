"""Which blocks a backbone skips must not decide what an instance is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bsgal_train.data import ClassMatchedReference, TrainingSample
from bsgal_train.detector import build_detector
from bsgal_train.engine.run import train
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.selection import Selected, build_selection

# Of a handful of real objects, and one look, no more can be said.
SETTINGS = {"instance": ("selection.min_looks=1", "selection.alpha=0.4")}


def first_step(
    recipe: Recipe,
    mode: str,
    drop_path: float,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
) -> Selected:
    recipe = recipe.override(
        f"selection.mode={mode}", f"detector.drop_path={drop_path}", *SETTINGS.get(mode, ())
    )
    torch.manual_seed(0)
    detector: Any = build_detector(recipe.detector, n_classes=3)
    for name, p in detector.named_parameters():
        if name.startswith("backbone.bottom_up") and name.endswith("bn2.weight"):
            # A block that is skipped has to be missed.
            torch.nn.init.constant_(p, 3.0)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, "fp32")
    selection = build_selection(recipe, detector, reference, update)
    selected = selection(detector, samples, 1, seed=5)
    assert detector.backbone.training
    return selected


def numbers(selected: Selected) -> list[Any]:
    return [(row.instance_id, row.contribution, row.verdict) for row in selected.decisions]


@pytest.mark.parametrize("mode", ["paper", "batch", "image", "instance", "oracle"])
def test_scores_are_those_without_drop_path(
    mode: str, tiny_recipe: Recipe, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    if mode == "oracle":
        # Two steps per instance.
        samples = samples[:1]
    with_it, without = (
        first_step(tiny_recipe, mode, share, reference, samples) for share in (0.9, 0.0)
    )

    assert any(row.contribution for row in without.decisions)
    assert numbers(with_it) == numbers(without)


@pytest.mark.parametrize("mode", ["none", "paste_all", "paste_random", "paper"])
def test_modes_that_do_not_score_the_training_pass_train_with_it(
    mode: str, tiny_recipe: Recipe, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    with_it, without = (
        first_step(tiny_recipe, mode, share, reference, samples) for share in (0.9, 0.0)
    )

    for name, loss in without.losses.items():
        assert not torch.equal(loss, with_it.losses[name])


@pytest.mark.parametrize("mode", ["instance", "paste_random"])
def test_a_run_has_drop_path_where_its_scores_allow_it(
    mode: str, tiny_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe.override(
        f"selection.mode={mode}", "schedule.n_steps=2", "data.val_json=", "optimizer.lr=0.1"
    )
    for name, drop_path in (("with", 0.9), ("without", 0.0)):
        train(recipe.override(f"detector.drop_path={drop_path}"), tmp_path / name)

    weights = [
        (tmp_path / name / "detector.safetensors").read_bytes() for name in ("with", "without")
    ]
    is_off = mode == "instance"
    assert (weights[0] == weights[1]) == is_off
    assert ("detector.drop_path=0.9 is off in this run" in caplog.text) == is_off
    assert read_decisions(tmp_path / "with/decisions").num_rows > 0
