"""From the recipe's mode to the object that runs it."""

from __future__ import annotations

import logging

from torch import nn

from bsgal_train.data import ClassMatchedReference
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import Recipe
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.step import SelectionStep

__all__ = ["build_selection"]

logger = logging.getLogger(__name__)


def build_selection(
    recipe: Recipe,
    detector: nn.Module,
    reference: ClassMatchedReference,
    update: OptimizerStep,
) -> SelectionStep:
    """Return the selection step of `recipe.selection.mode`.

    Args:
        recipe: of the run.
        detector: whose gradients are compared by modes that do.
        reference: real images for modes that need them.
        update: the run's own step; some modes predict it, `oracle` takes it on trial.
    """
    spec = recipe.selection.spec
    if spec.scores_the_training_pass and recipe.detector.drop_path:
        logger.warning(
            "selection.mode=%s scores the pass that is trained on: detector.drop_path=%g is off in "
            "this run, so that scores do not depend on it",
            recipe.selection.mode,
            recipe.detector.drop_path,
        )
    setup = Setup(recipe=recipe, detector=detector, reference=reference, update=update)
    step: SelectionStep = setup.make("modes", spec.step)
    return step
