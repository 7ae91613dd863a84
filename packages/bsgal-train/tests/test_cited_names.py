"""Names of our packages that documentation cites exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
SITE = PACKAGE.parents[1] / "docs"
SOURCES = sorted([*PACKAGE.glob("src/**/*.py"), *SITE.glob("**/*.md"), PACKAGE / "README.md"])
CITED = re.compile(r"`(bsgal_\w+(?:\.\w+)+)(?:\([^`]*\))?`")
CITED_FILE = re.compile(r"`(bsgal_\w+/[\w/]+\.py)`")


def exists(name: str) -> bool:
    """Say whether a dotted name is a module, or public in the innermost module that it names."""
    parts = name.split(".")
    for n_parts in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:n_parts]))
        except ModuleNotFoundError:
            continue
        attributes = parts[n_parts:]
        if attributes and attributes[0] not in getattr(found, "__all__", dir(found)):
            return False
        for attribute in attributes:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def cited(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    return [
        (name, path.name)
        for path in SOURCES
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    ]


def test_cited_names_exist() -> None:
    names = cited(CITED)

    assert names
    assert [(name, path) for name, path in names if not exists(name)] == []


def test_cited_files_exist() -> None:
    files = cited(CITED_FILE)

    assert files
    assert [one for one in files if not (PACKAGE / "src" / one[0]).is_file()] == []


@pytest.mark.parametrize(
    "name",
    ["bsgal_train.data.crop_masks", "bsgal_train.nowhere", "bsgal_train.recipe.Recipe.nothing"],
)
def test_a_name_that_is_not_there_is_found_out(name: str) -> None:
    assert exists("bsgal_train.recipe.Recipe.override")
    assert not exists(name)
