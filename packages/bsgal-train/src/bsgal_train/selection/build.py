"""From the recipe's mode to the object that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from bsgal_train.recipe import Recipe
from bsgal_train.selection.base import SelectionStep
from bsgal_train.selection.paper import PaperSelection
from bsgal_train.selection.plain import AlwaysPaste, NeverPaste

if TYPE_CHECKING:
    from bsgal_train.data import ClassMatchedReference

__all__ = ["build_selection"]


def build_selection(
    recipe: Recipe, detector: nn.Module, reference: ClassMatchedReference
) -> SelectionStep:
    """Return the selection step of `recipe.selection.mode`.

    Args:
        recipe: of the run.
        detector: whose gradients are compared by modes that do.
        reference: real images for modes that need them.
    """
    precision = recipe.detector.precision
    if recipe.selection.mode == "none":
        return NeverPaste(precision)
    if recipe.selection.mode == "paste_all":
        return AlwaysPaste(precision)
    return PaperSelection(detector, reference, recipe.selection, precision)
