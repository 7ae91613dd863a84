"""From the recipe's mode to the object that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from bsgal_train.recipe import Recipe
from bsgal_train.selection.base import SelectionStep
from bsgal_train.selection.batch import BatchSelection
from bsgal_train.selection.class_row_scoring import ClassRowScoring
from bsgal_train.selection.head_scoring import HeadScoring
from bsgal_train.selection.oracle import OracleSelection
from bsgal_train.selection.paper import PaperSelection
from bsgal_train.selection.plain import AlwaysPaste, NeverPaste
from bsgal_train.selection.random_share import RandomSelection
from bsgal_train.selection.row_selection import RowSelection
from bsgal_train.selection.scoring import Scoring

if TYPE_CHECKING:
    from bsgal_train.data import ClassMatchedReference

__all__ = ["build_selection"]


def build_selection(
    recipe: Recipe,
    detector: nn.Module,
    reference: ClassMatchedReference,
    optimizer: Optimizer,
) -> SelectionStep:
    """Return the selection step of `recipe.selection.mode`.

    Args:
        recipe: of the run.
        detector: whose gradients are compared by modes that do.
        reference: real images for modes that need them.
        optimizer: the run's own, read by modes that predict its next step.
    """
    mode = recipe.selection.mode
    if mode == "none":
        return NeverPaste(recipe.detector.precision)
    if mode == "paste_all":
        return AlwaysPaste(recipe.detector.precision)
    if mode == "paste_random":
        return RandomSelection(recipe)
    if mode == "paper":
        return PaperSelection(detector, reference, recipe, optimizer)
    if mode == "batch":
        return BatchSelection(detector, reference, recipe, optimizer)
    if mode == "oracle":
        return OracleSelection(reference, recipe, optimizer)
    scoring: Scoring
    if recipe.selection.effective_reference == "own_class":
        scoring = ClassRowScoring(detector, reference, recipe)
    else:
        scoring = HeadScoring(detector, reference, recipe, optimizer, mode)
    return RowSelection(scoring, recipe, mode)
