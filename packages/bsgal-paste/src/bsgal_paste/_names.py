"""Match the categories of a pool to those of an annotation file by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bsgal_paste.errors import AnnotationError

_TRAILING_PARENTHESIS = re.compile(r"\s*\(([^()]*)\)\s*$")

# Of the names that LVIS (v0.5 and v1) has with and without a parenthesis, those that its synonyms
# do not tell apart: a pool of either must not serve the other, whatever else the pool holds.
_LVIS_TOLD_APART = frozenset({"fish", "fish (food)"})


def full_category_name(name: str) -> str:
    """Reduce a category name to lower case with single spaces for underscores; trimmed.

    >>> full_category_name("Salmon_(fish)")
    'salmon (fish)'
    """
    return " ".join(name.lower().replace("_", " ").split())


def normalise_category_name(name: str) -> str:
    """Reduce a category name to its full form without a trailing parenthesis, which is its sense.

    >>> normalise_category_name("Salmon_(fish)")
    'salmon'
    """
    return _TRAILING_PARENTHESIS.sub("", full_category_name(name))


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
        TypeError: `categories` is no collection of mappings or such objects.
        AnnotationError: A category lacks `id` or `name`, one of its values is of the wrong kind,
            or two categories have one id.
    """
    if isinstance(categories, str | bytes | Mapping) or not isinstance(categories, Iterable):
        raise TypeError(
            "`categories` must be the `categories` of an LVIS file or category objects, got "
            f"{type(categories).__name__}"
        )
    names = [_category_names(category) for category in categories]
    if len({entry.category_id for entry in names}) != len(names):
        raise AnnotationError("two of the categories have one id")
    return tuple(names)


def _category_names(category: CategoryLike | Mapping[str, Any]) -> CategoryNames:
    if isinstance(category, Mapping):
        if "id" not in category or "name" not in category:
            raise AnnotationError(
                f"a category needs `id` and `name`, got the keys {sorted(map(str, category))}"
            )
        values = category["id"], category["name"], category.get("synonyms", ())
    else:
        try:
            values = category.category_id, category.name, category.synonyms
        except AttributeError as error:
            raise TypeError(f"a category must be a mapping or a category object: {error}") from None
    category_id, name, synonyms = values
    if not is_category_id(category_id):
        raise AnnotationError(
            f"a category's id must be an integer of at least 0, got {category_id!r}"
        )
    if not isinstance(name, str) or not name.strip():
        raise AnnotationError(f"category {category_id}: the name must be text, got {name!r}")
    if (
        isinstance(synonyms, str)
        or not isinstance(synonyms, Sequence)
        or not all(isinstance(synonym, str) for synonym in synonyms)
    ):
        raise AnnotationError(
            f"category {category_id}: `synonyms` must be a list of texts, got {synonyms!r}"
        )
    return CategoryNames(int(category_id), name, tuple(synonyms))


def is_category_id(value: object) -> bool:
    """Say whether a value is an integer from 0 that an int64 array can hold; a bool is none."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_integer and 0 <= int(value) < 2**63  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Match:
    """Say which annotation categories a pool category's name stands for.

    Attributes:
        category_ids: None, the one, or several if the name is ambiguous; sorted.
        how: `name`, `sense` where one of the names has a parenthesis that the other lacks, or
            `synonym`.
    """

    category_ids: tuple[int, ...]
    how: str


class NameMatcher:
    """Find the annotation category that a pool category's name stands for.

    The full name counts first. Failing that the name but for a parenthesis that only one side
    has; where both have one they mean different things. Failing that the full name of a synonym.
    Two names that one vocabulary tells apart, the pool's or LVIS, never stand for each other.

    Args:
        categories: Of the annotation file.
        pool_names: The names of all categories of the pool.
    """

    def __init__(self, categories: Sequence[CategoryNames], pool_names: Iterable[str]) -> None:
        self._vocabularies = (frozenset(map(full_category_name, pool_names)), _LVIS_TOLD_APART)
        self._by_name: dict[str, set[int]] = {}
        self._by_synonym: dict[str, set[int]] = {}
        self._full_names: dict[str, set[str]] = {}
        for category in categories:
            full = full_category_name(category.name)
            self._by_name.setdefault(full, set()).add(category.category_id)
            self._full_names.setdefault(normalise_category_name(full), set()).add(full)
            for synonym in category.synonyms:
                key = full_category_name(synonym)
                self._by_synonym.setdefault(key, set()).add(category.category_id)

    def find(self, pool_name: str) -> Match:
        """Give the annotation categories that a pool category's name stands for."""
        full = full_category_name(pool_name)
        if full in self._by_name:
            return Match(tuple(sorted(self._by_name[full])), "name")
        plain = normalise_category_name(pool_name)
        other_senses = [
            self._by_name[name]
            for name in self._full_names.get(plain, ())
            if plain in (full, name)
            and not any({full, name} <= vocabulary for vocabulary in self._vocabularies)
        ]
        if other_senses:
            return Match(tuple(sorted(set().union(*other_senses))), "sense")
        return Match(tuple(sorted(self._by_synonym.get(full, ()))), "synonym")
