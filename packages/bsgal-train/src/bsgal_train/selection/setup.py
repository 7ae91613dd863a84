"""What a selection is made of."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from bsgal_train.data import ClassMatchedReference
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import Recipe, SelectionConfig
from bsgal_train.recipe.modes import Granularity

__all__ = ["Setup"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What modes and sources of scores are made of.

    Attributes:
        recipe: of the run.
        detector: whose gradients are compared; its heads report their losses row by row.
        reference: draws real images for those that need them.
        update: the run's own step; some predict it, `oracle` takes it on trial.
    """

    recipe: Recipe
    detector: nn.Module
    reference: ClassMatchedReference
    update: OptimizerStep

    @property
    def config(self) -> SelectionConfig:
        """The recipe's selection."""
        return self.recipe.selection

    @property
    def granularity(self) -> Granularity:
        """What shares a verdict."""
        return self.config.spec.granularity or self.config.granularity

    @property
    def optimizer(self) -> Optimizer:
        """The run's."""
        return self.update.optimizer

    def make(self, room: Literal["modes", "scoring"], name: str) -> Any:
        """Return an object of a class that `bsgal_train.recipe.modes` names.

        Args:
            room: folder of the selection that it is in.
            name: its module and its own name, with a colon between.
        """
        module, _, class_name = name.partition(":")
        return getattr(import_module(f"bsgal_train.selection.{room}.{module}"), class_name)(self)
