"""`meta.json`, which says what a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bsgal_mask._jsonl import Row, parse_object

META_NAME, MANIFEST_NAME = "meta.json", "manifest.jsonl"
# Ours is nested five levels deep; what compares settings walks them level by level.
_MAX_DEPTH = 50


def parse_meta(path: Path, content: bytes, schema: str) -> Row:
    """Return the JSON object in a folder's `meta.json`.

    Raises:
        ValueError: It is no JSON object, or of another schema.
    """
    try:
        meta = parse_object(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = meta.get("schema")
    if found != schema:
        got = repr(found) if isinstance(found, str) else type(found).__name__
        raise ValueError(f"{path}: schema must be {schema!r}, got {got}")
    if _is_deeper_than(_MAX_DEPTH, meta):
        raise ValueError(f"{path}: nested deeper than {_MAX_DEPTH} levels")
    return meta


def _is_deeper_than(max_depth: int, value: Any) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
