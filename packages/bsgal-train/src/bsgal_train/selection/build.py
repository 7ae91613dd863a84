"""From the recipe's mode to the object that runs it."""

from __future__ import annotations

import logging

from torch import nn

from bsgal_train.data import ClassMatchedReference
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import Recipe
from bsgal_train.selection.modes.batch import BatchSelection
from bsgal_train.selection.modes.oracle import OracleSelection
from bsgal_train.selection.modes.paper import PaperSelection
from bsgal_train.selection.modes.plain import AlwaysPaste, NeverPaste
from bsgal_train.selection.modes.random import RandomSelection
from bsgal_train.selection.modes.rows import RowSelection
from bsgal_train.selection.scoring.class_rows import ClassRowScoring
from bsgal_train.selection.scoring.heads import HeadScoring
from bsgal_train.selection.scoring.protocol import Scoring
from bsgal_train.selection.steady import SteadySelection
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
    selection = _of_mode(recipe, detector, reference, update)
    if not recipe.selection.spec.scores_the_training_pass:
        return selection
    if recipe.detector.drop_path:
        logger.warning(
            "selection.mode=%s scores the pass that is trained on: detector.drop_path=%g is off in "
            "this run, so that scores do not depend on it",
            recipe.selection.mode,
            recipe.detector.drop_path,
        )
    return SteadySelection(selection)


def _of_mode(
    recipe: Recipe,
    detector: nn.Module,
    reference: ClassMatchedReference,
    update: OptimizerStep,
) -> SelectionStep:
    mode = recipe.selection.mode
    if mode == "none":
        return NeverPaste(recipe.detector.precision)
    if mode == "paste_all":
        return AlwaysPaste(recipe.detector.precision)
    if mode == "paste_random":
        return RandomSelection(recipe)
    if mode == "paper":
        return PaperSelection(detector, reference, recipe, update.optimizer)
    if mode == "batch":
        return BatchSelection(detector, reference, recipe, update.optimizer)
    if mode == "oracle":
        return OracleSelection(reference, recipe, update)
    granularity = recipe.selection.spec.granularity
    assert granularity == "image" or granularity == "instance", "the modes that score rows"
    scoring: Scoring
    if recipe.selection.effective_reference == "own_class":
        scoring = ClassRowScoring(detector, reference, recipe)
    else:
        scoring = HeadScoring(detector, reference, recipe, update.optimizer, granularity)
    return RowSelection(scoring, recipe, granularity)
