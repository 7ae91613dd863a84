"""Train and evaluate long-tailed instance segmentation with chosen generated instances.

What a user needs is here. Each name is imported when it is first asked for, so that this import,
and a recipe, take neither torch nor detectron2.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.engine.hooks import FinishedStep, Hook
    from bsgal_train.engine.plateau import StopOnPlateau
    from bsgal_train.engine.run import evaluate, train
    from bsgal_train.engine.steering import Steering
    from bsgal_train.evaluation import evaluate_lvis
    from bsgal_train.recipe import Recipe
    from bsgal_train.recipe.library import load_recipe
    from bsgal_train.run_folder.decision_log import read_decisions

__all__ = [
    "FinishedStep",
    "Hook",
    "LvisAnnotations",
    "Recipe",
    "Steering",
    "StopOnPlateau",
    "__version__",
    "evaluate",
    "evaluate_lvis",
    "load_recipe",
    "read_decisions",
    "train",
]

__version__ = version("bsgal-train")

_MODULES = {
    "FinishedStep": "engine.hooks",
    "Hook": "engine.hooks",
    "LvisAnnotations": "annotations",
    "Recipe": "recipe",
    "Steering": "engine.steering",
    "StopOnPlateau": "engine.plateau",
    "evaluate": "engine.run",
    "evaluate_lvis": "evaluation",
    "load_recipe": "recipe.library",
    "read_decisions": "run_folder.decision_log",
    "train": "engine.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
