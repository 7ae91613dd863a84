"""The rounds of an image set: how many images per category each run planned.

`meta.json` holds the first round's numbers and never changes, since others identify the set by it;
larger numbers are appended to a file of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._jsonl import JsonlAppender, read_jsonl
from ._meta import IMAGES_PER_CATEGORY, META_NAME, setting
from ._schema import check_object
from .errors import ConfigChangedError, ImageSetError

ROUNDS_NAME = "rounds.jsonl"
_KEY = "images_per_category"

Counts = int | dict[int, int]


def read_rounds(root: Path, meta: Mapping[str, Any]) -> list[Counts]:
    """Return the numbers of images per category of every round, at least one.

    Raises:
        ImageSetError: The file of rounds is damaged.
    """
    first = setting(meta, f"config.plan.{_KEY}", root)
    path = root / ROUNDS_NAME
    further = []
    for number, value in read_jsonl(path) if path.exists() else ():
        check_object(value, {_KEY: IMAGES_PER_CATEGORY}, f"{path}, line {number}", ImageSetError)
        further.append(value[_KEY])
    rounds = [_from_json(value) for value in (first, *further)]
    ids = set(map(int, setting(meta, "config.plan.categories", root)))
    for counts in rounds:
        if isinstance(counts, dict) and counts.keys() != ids:
            raise ImageSetError(
                f"`{_KEY}` in {root / META_NAME} and {path} must give a number to every category "
                "of the plan and to no other"
            )
    return rounds


def continue_rounds(root: Path, meta: Mapping[str, Any], now: Counts) -> list[Counts]:
    """Return the rounds of a set that is continued, `now` the last one; record it if it is new.

    Raises:
        ConfigChangedError: A category has fewer images than before.
        ImageSetError: The file of rounds is damaged.
    """
    rounds = read_rounds(root, meta)
    has_grown = False
    for key, category in meta["config"]["plan"]["categories"].items():
        before, after = (_count(counts, int(key)) for counts in (rounds[-1], now))
        has_grown |= after > before
        if after < before:
            raise ConfigChangedError(
                f"{root} was planned with {before} images of category {key} ({category['name']}), "
                f"and now with {after}; plan at least as many, or use another folder for a new set"
            )
    if has_grown:
        with JsonlAppender(root / ROUNDS_NAME) as file:
            file.append(
                {_KEY: now if isinstance(now, int) else {str(k): n for k, n in now.items()}}
            )
        rounds.append(now)
    return rounds


def _from_json(value: int | Mapping[str, int]) -> Counts:
    return value if isinstance(value, int) else {int(key): n for key, n in value.items()}


def _count(counts: Counts, category_id: int) -> int:
    return counts if isinstance(counts, int) else counts[category_id]
