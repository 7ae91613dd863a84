"""The categories to generate, and the kinds of file they are read from."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ._schema import ID, NAME, TEXT, is_int, is_name, is_text, parse_json, shown
from .errors import CategoryFileError

Kind = Literal["object", "scene"]


@dataclass(frozen=True, slots=True)
class Category:
    """One category of the data set.

    Attributes:
        category_id: Id of 0 or more, as in the annotation file (LVIS ids start at 1).
        name: Name as the data set spells it, for example `"salmon_(fish)"`.
        synonyms: Other names in the same spelling.
        definition: A short gloss, for templates that ask for one; empty if there is none.
        kind: What its images show: an object of the category, or a scene without one.
    """

    category_id: int
    name: str
    synonyms: tuple[str, ...] = ()
    definition: str = ""
    kind: Kind = "object"

    def __post_init__(self) -> None:
        if not is_int(self.category_id):
            raise ValueError(f"`category_id` must {ID.words}, got {shown(self.category_id)}")
        if not is_name(self.name):
            raise ValueError(
                f"category {self.category_id}: `name` must {NAME.words}, got {shown(self.name)}"
            )

    @property
    def readable_name(self) -> str:
        """The name in plain words, its sense in parentheses kept: `"salmon (fish)"`."""
        return " ".join(self.name.replace("_", " ").split())

    @property
    def noun(self) -> str:
        """The readable name without the sense: `"salmon"`."""
        return self.readable_name.partition("(")[0].strip() or self.readable_name


SCENE = Category(0, "scene", kind="scene")
"""Stands for images that show no object of the data set."""


def load_categories(path: str | Path) -> tuple[Category, ...]:
    """Read categories from an annotation file, a category list in JSON, or a plain text list.

    Accepted are an LVIS or COCO annotation file (JSON with a `"categories"` list), the bare list of
    such category objects (`id`, `name` and optionally `synonyms` and `def`), and plain text: one
    name a line, numbered from 1, blank lines and lines that start with `#` skipped. JSON is known
    by its first character, whatever the file is called; a byte order mark is skipped.

    Args:
        path: The file to read.

    Returns:
        The categories, sorted by id.

    Raises:
        CategoryFileError: The file is missing, malformed, empty, or repeats an id or a name.
    """
    path = Path(path)
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise CategoryFileError(f"category file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CategoryFileError(f"category file {path} cannot be read: {error}") from error
    is_json = path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "[")
    categories = _from_json(content, path) if is_json else _from_lines(text, path)
    return check_categories(categories, where=str(path))


def check_categories(categories: Iterable[Category], where: str) -> tuple[Category, ...]:
    """Return the categories sorted by id; raise if there are none or two share an id or a name."""
    by_id: dict[int, Category] = {}
    by_name: dict[str, Category] = {}
    for category in categories:
        if (other := by_id.get(category.category_id)) is not None:
            raise CategoryFileError(
                f"{where}: category id {category.category_id} is used by both {other.name!r} and "
                f"{category.name!r}; ids must be unique"
            )
        if (other := by_name.get(category.name)) is not None:
            raise CategoryFileError(
                f"{where}: the name {category.name!r} belongs to both category {other.category_id} "
                f"and category {category.category_id}; names must be unique"
            )
        by_id[category.category_id] = by_name[category.name] = category
    if not by_id:
        raise CategoryFileError(f"{where}: no categories found")
    return tuple(by_id[category_id] for category_id in sorted(by_id))


def _from_json(text: bytes, path: Path) -> list[Category]:
    try:
        content = parse_json(text)
    except ValueError as error:
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
        raise CategoryFileError(
            f'{where}: must be an object with "id" and "name", got {shown(entry)}'
        )
    synonyms = entry.get("synonyms", [])
    if not isinstance(synonyms, list) or not all(map(is_name, synonyms)):
        raise CategoryFileError(
            f'{where}: "synonyms" must be a list of names, got {shown(synonyms)}'
        )
    definition = entry.get("def", entry.get("definition", ""))
    if not is_text(definition):
        raise CategoryFileError(f'{where}: "def" must {TEXT.words}, got {shown(definition)}')
    try:
        return Category(entry["id"], entry["name"], tuple(synonyms), definition.strip())
    except ValueError as error:
        raise CategoryFileError(f"{where}: {error}") from error


def _from_lines(text: str, path: Path) -> list[Category]:
    categories: list[Category] = []
    for number, line in enumerate(text.split("\n"), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        # Such a line is a piece of a JSON file, not a name.
        if not is_name(name) or set(name) & set('{}[]"'):
            raise CategoryFileError(
                f"{path}, line {number}: a name must {NAME.words}, and be no JSON, got {name!r}"
            )
        categories.append(Category(len(categories) + 1, name))
    return categories
