"""Match the categories of a pool to those of an annotation file by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bsgal_paste.errors import AnnotationError

_TRAILING_PARENTHESIS = re.compile(r"\s*\([^()]*\)\s*$")


def normalise_category_name(name: str) -> str:
    """Reduce a category name to the form in which two data sets can agree on it.

    Lower case, a trailing parenthesis dropped, underscores turned into spaces, trimmed.

    >>> normalise_category_name("Salmon_(fish)")
    'salmon'
    """
    plain = " ".join(name.lower().replace("_", " ").split())
    return _TRAILING_PARENTHESIS.sub("", plain)


class CategoryLike(Protocol):
    """Describe a category object; mappings with LVIS keys are taken as well."""

    @property
    def category_id(self) -> int:
        """Give the id that annotations refer to."""

    @property
    def name(self) -> str:
        """Give the name, as in the annotation file."""

    @property
    def synonyms(self) -> Sequence[str]:
        """Give other names of the same thing; may be empty."""


@dataclass(frozen=True, slots=True)
class CategoryNames:
    """Hold what matching needs to know of one annotation category."""

    category_id: int
    name: str
    synonyms: tuple[str, ...]


def category_names(
    categories: Iterable[CategoryLike | Mapping[str, Any]],
) -> tuple[CategoryNames, ...]:
    """Read categories given as LVIS mappings (`id`, `name`, `synonyms`) or as objects.

    Raises:
        AnnotationError: A mapping lacks `id` or `name`.
    """
    names = []
    for category in categories:
        if isinstance(category, Mapping):
            if "id" not in category or "name" not in category:
                raise AnnotationError(
                    f"a category needs `id` and `name`, got the keys {sorted(category)}"
                )
            entry = CategoryNames(
                int(category["id"]), str(category["name"]), tuple(category.get("synonyms", ()))
            )
        else:
            entry = CategoryNames(
                int(category.category_id), category.name, tuple(category.synonyms)
            )
        names.append(entry)
    return tuple(names)


class NameMatcher:
    """Find the annotation category that a pool category's name stands for.

    The full name counts first (so that the two salmons of LVIS stay apart), then the normalised
    name, then the normalised synonyms; the first of the three with a hit decides.
    """

    def __init__(self, categories: Sequence[CategoryNames]) -> None:
        self._tiers: list[dict[str, set[int]]] = [{}, {}, {}]
        for category in categories:
            keys = (
                [_full_name(category.name)],
                [normalise_category_name(category.name)],
                [normalise_category_name(synonym) for synonym in category.synonyms],
            )
            for tier, tier_keys in zip(self._tiers, keys, strict=True):
                for key in tier_keys:
                    tier.setdefault(key, set()).add(category.category_id)

    def find(self, pool_name: str) -> tuple[int, ...]:
        """Give the matching category ids: none, the one, or several if the name is ambiguous."""
        normalised = normalise_category_name(pool_name)
        for tier, key in zip(
            self._tiers, (_full_name(pool_name), normalised, normalised), strict=True
        ):
            if key in tier:
                return tuple(sorted(tier[key]))
        return ()


def _full_name(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
