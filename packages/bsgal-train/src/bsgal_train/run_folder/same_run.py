"""Whether two recipes are those of one run."""

from __future__ import annotations

from typing import Any

from bsgal_train.recipe import Recipe

__all__ = ["differing_settings"]

# Settings that may differ between the starts of one run: they change no number.
_FREE_SETTINGS = (
    "data.n_workers",
    "schedule.log_every",
    "checkpoint.every",
    "checkpoint.keep",
)


def differing_settings(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the settings that change results and differ between two recipes, by dotted key."""
    one, other = (
        {
            f"{part}.{name}": value
            for part, named in recipe.to_dict().items()
            for name, value in named.items()
        }
        for recipe in (a, b)
    )
    return {
        key: (one[key], other[key])
        for key in sorted(one)
        if key not in _FREE_SETTINGS and one[key] != other[key]
    }
