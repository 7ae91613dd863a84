"""Whether two recipes are those of one run."""

from __future__ import annotations

from typing import Any

from bsgal_train.recipe import Recipe

__all__ = ["differing_settings", "settings_that_count"]

# Settings that may differ between the starts of one run: they change no number.
_FREE_SETTINGS = (
    "data.n_workers",
    "schedule.log_every",
    "checkpoint.every",
    "checkpoint.keep",
)


def differing_settings(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the settings that change results and differ between two recipes, by dotted key."""
    one, other = settings_that_count(a), settings_that_count(b)
    return {key: (one[key], other[key]) for key in one if one[key] != other[key]}


def settings_that_count(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that change results, by dotted key in alphabetical order."""
    settings = {
        f"{part}.{name}": value
        for part, named in recipe.to_dict().items()
        for name, value in named.items()
    }
    return {key: settings[key] for key in sorted(settings) if key not in _FREE_SETTINGS}
