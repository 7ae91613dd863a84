"""`meta.json` of an image set: what the set was made with, and whether a run may continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._jsonl import write_atomically
from .errors import ConfigChangedError, ImageSetError

SCHEMA = "bsgal.image_set/1"
META_NAME = "meta.json"


def with_schema(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the meta with its schema, as it will be after writing and reading."""
    return dict(json.loads(json.dumps({"schema": SCHEMA, **meta})))


def write_meta(root: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` atomically."""
    content = json.dumps(meta, indent=1, ensure_ascii=False) + "\n"
    write_atomically(root / META_NAME, content.encode())


def read_meta(root: Path, expected: str = SCHEMA) -> dict[str, Any] | None:
    """Return `meta.json` of a folder, or None if there is none.

    Args:
        root: The folder.
        expected: The schema it must have.

    Raises:
        ImageSetError: The file cannot be read or has another schema.
    """
    path = root / META_NAME
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ImageSetError(f"{path} cannot be read: {error}") from error
    schema = meta.get("schema") if isinstance(meta, dict) else None
    if schema != expected:
        raise ImageSetError(f"{path} has schema {schema!r}; this version reads {expected!r} only")
    return dict(meta)


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Return where two JSON values first differ, as ``"a.b was 1 and is now 2"``, or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in new:
                return f"{inner} was {_short(old[key])} and is now missing"
            if key not in old:
                return f"{inner} was missing and is now {_short(new[key])}"
            if difference := first_difference(old[key], new[key], inner):
                return difference
        return None
    return None if old == new else f"{path} was {_short(old)} and is now {_short(new)}"


def check_unchanged(root: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise unless two metas agree on the config and on the model's weights.

    The model may have moved to another folder, the libraries may be newer, and the plan may have
    another number of images per category.

    Raises:
        ConfigChangedError: They differ; the message names the first difference.
    """
    for compared in (_config, _weights):
        if difference := first_difference(compared(old), compared(new)):
            raise ConfigChangedError(
                f"{root} holds an image set made with another configuration: {difference}; use the "
                "old setting to continue it, or another folder for a new set"
            )


def _config(meta: Mapping[str, Any]) -> Any:
    config = dict(meta.get("config") or {})
    plan = {k: v for k, v in config.get("plan", {}).items() if k != "images_per_category"}
    return {"config": {**config, "plan": plan}}


def _weights(meta: Mapping[str, Any]) -> Any:
    return {"model": {"weight_hash": meta.get("model", {}).get("weight_hash")}}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
