from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bsgal_train.data import ClassMatchedReference, TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import recorded
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import Recipe
from bsgal_train.selection import build_selection
from bsgal_train.selection.scoring.passes import reference_loss

SEED = 7


def optimizer_of(detector: Any) -> torch.optim.Optimizer:
    # Unlike Adam's, its first step tells how long a gradient is.
    return torch.optim.SGD(detector.parameters(), lr=1.0)


def drop_by_a_step_on_the_first_object(
    detector: Any,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
    recipe: Recipe,
) -> float:
    """Take the run's own step on the first pasted object alone, in a copy of the detector."""
    own = copy.deepcopy(detector)
    keys = [sample.position for sample in samples]

    def real_loss() -> float:
        real = reference.for_step(samples, SEED)
        kinds = recipe.selection.effective_losses
        loss = reference_loss(own, real, "fp32", SEED, keys, kinds=kinds)
        assert loss is not None
        return float(loss.detach())

    before = real_loss()
    step = OptimizerStep(own, optimizer_of(own), recipe.optimizer, "fp32")
    with recorded() as rows:
        training_losses(own, [sample.pasted for sample in samples], "fp32", SEED, keys)
    shares = [one.total((one.rows.image == 0) & (one.rows.source == 0)) for one in rows]
    step.backward(torch.stack(shares).sum())
    step.clip()
    step.apply()
    return before - real_loss()


@pytest.mark.parametrize("clip_type", ["norm", "value"])
def test_objects_are_tried_with_the_step_that_the_run_takes(
    clip_type: str,
    detector: Any,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
    tiny_recipe: Recipe,
) -> None:
    recipe = tiny_recipe.override(
        "selection.mode=oracle",
        "selection.oracle_step=alone",
        "optimizer.clip_norm=0.01",
        f"optimizer.clip_type={clip_type}",
    )
    step = OptimizerStep(detector, optimizer_of(detector), recipe.optimizer, "fp32")
    selection = build_selection(recipe, detector, reference, step)

    first = selection(detector, samples, 1, SEED).decisions[0]

    wanted = drop_by_a_step_on_the_first_object(detector, reference, samples, recipe)
    assert first.contribution == pytest.approx(wanted, rel=1e-6)
    assert abs(wanted) > 1e-6
