"""The categories to generate, and the three kinds of file they are read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import CategoryFileError

_SCENE_NAME = "scene"


@dataclass(frozen=True, slots=True)
class Category:
    """One category of the data set.

    Attributes:
        category_id: Positive id, as in the annotation file (LVIS ids start at 1).
        name: Name as the data set spells it, for example `"salmon_(fish)"`.
        synonyms: Other names in the same spelling.
        definition: A short gloss, for templates that ask for one; empty if there is none.
    """

    category_id: int
    name: str
    synonyms: tuple[str, ...] = ()
    definition: str = ""

    def __post_init__(self) -> None:
        least = 0 if self.name == _SCENE_NAME else 1
        if type(self.category_id) is not int or self.category_id < least:
            raise ValueError(
                f"`category_id` must be an int of at least 1, got {self.category_id!r}"
            )
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(
                f"category {self.category_id}: `name` must be a non-empty string, got {self.name!r}"
            )

    @property
    def readable_name(self) -> str:
        """The name in plain words, its sense in parentheses kept: `"salmon (fish)"`."""
        return " ".join(self.name.replace("_", " ").split())

    @property
    def noun(self) -> str:
        """The readable name without the sense: `"salmon"`."""
        return self.readable_name.partition("(")[0].strip() or self.readable_name


SCENE = Category(0, _SCENE_NAME)
"""Stands for images that show no object of the data set; id 0 is free for it."""


def kind_of(category_id: int) -> Literal["object", "scene"]:
    """Return what images with this category id show."""
    return "scene" if category_id == SCENE.category_id else "object"


def load_categories(path: str | Path) -> tuple[Category, ...]:
    """Read categories from an annotation file, a category list in JSON, or a plain text list.

    Accepted are an LVIS or COCO annotation file (`*.json` with a `"categories"` list), the bare
    list of such category objects (`id`, `name` and optionally `synonyms` and `def`), and any other
    file as plain text: one name a line, numbered from 1, blank lines and lines that start with `#`
    skipped.

    Args:
        path: The file to read.

    Returns:
        The categories, sorted by id.

    Raises:
        CategoryFileError: The file is missing, malformed, empty, or repeats an id or a name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CategoryFileError(f"category file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CategoryFileError(f"category file {path} cannot be read: {error}") from error
    is_json = path.suffix.lower() == ".json"
    categories = _from_json(text, path) if is_json else _from_lines(text)
    return check_categories(categories, where=str(path))


def check_categories(categories: Iterable[Category], where: str) -> tuple[Category, ...]:
    """Return the categories sorted by id; raise if there are none or two share an id or a name."""
    by_id: dict[int, Category] = {}
    by_name: dict[str, Category] = {}
    for category in categories:
        if other := by_id.get(category.category_id):
            raise CategoryFileError(
                f"{where}: category id {category.category_id} is used by both {other.name!r} and "
                f"{category.name!r}; ids must be unique"
            )
        if other := by_name.get(category.name):
            raise CategoryFileError(
                f"{where}: the name {category.name!r} belongs to both category {other.category_id} "
                f"and category {category.category_id}; names must be unique"
            )
        by_id[category.category_id] = by_name[category.name] = category
    if not by_id:
        raise CategoryFileError(f"{where}: no categories found")
    return tuple(by_id[category_id] for category_id in sorted(by_id))


def _from_json(text: str, path: Path) -> list[Category]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CategoryFileError(f"category file {path} is not valid JSON: {error}") from error
    entries = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise CategoryFileError(
            f"category file {path} must hold a list of categories, or an object with a "
            '"categories" list (an LVIS or COCO annotation file)'
        )
    return [
        _from_entry(entry, f"{path}, category number {i}") for i, entry in enumerate(entries, 1)
    ]


def _from_entry(entry: object, where: str) -> Category:
    if not isinstance(entry, Mapping) or "id" not in entry or "name" not in entry:
        raise CategoryFileError(f'{where}: must be an object with "id" and "name", got {entry!r}')
    synonyms = entry.get("synonyms") or ()
    if isinstance(synonyms, str) or not all(isinstance(synonym, str) for synonym in synonyms):
        raise CategoryFileError(f'{where}: "synonyms" must be a list of strings, got {synonyms!r}')
    definition = entry.get("def", entry.get("definition")) or ""
    if not isinstance(definition, str):
        raise CategoryFileError(f'{where}: "def" must be a string, got {definition!r}')
    try:
        return Category(entry["id"], entry["name"], tuple(synonyms), definition.strip())
    except ValueError as error:
        raise CategoryFileError(f"{where}: {error}") from error


def _from_lines(text: str) -> list[Category]:
    names = [line.strip() for line in text.splitlines()]
    kept = [name for name in names if name and not name.startswith("#")]
    return [Category(i, name) for i, name in enumerate(kept, 1)]
