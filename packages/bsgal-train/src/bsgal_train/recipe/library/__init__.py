"""Recipes by name: each public module here defines one `recipe`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import runpy
from pathlib import Path

from bsgal_train.recipe.settings import Recipe

__all__ = ["load_recipe", "recipe_names"]


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def load_recipe(name: str) -> Recipe:
    """Return a recipe by name, from a Python file that defines `recipe`, or from a saved JSON.

    Raises:
        ValueError: if there is no such recipe; the nearest name is given.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return Recipe.load(path)
    if path.suffix == ".py" and path.is_file():
        recipe = runpy.run_path(str(path)).get("recipe")
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{path} does not define `recipe`, a bsgal_train.recipe.Recipe")
        return recipe
    if name not in recipe_names():
        nearest = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no recipe `{name}`; the nearest is `{nearest}` of {', '.join(recipe_names())} "
            "(or give the path of a .py or .json file)"
        )
    recipe = importlib.import_module(f"{__name__}.{name}").recipe
    assert isinstance(recipe, Recipe)
    return recipe
