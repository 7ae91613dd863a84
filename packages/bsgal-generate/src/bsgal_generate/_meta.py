"""`meta.json` of an image set: what the set was made with, and whether a run may continue it."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ._jsonl import write_atomically
from ._schema import (
    COUNT,
    ID,
    INT,
    NAME,
    NUMBER,
    OBJECT,
    TEXT,
    Rule,
    Schema,
    check_object,
    is_int,
    is_name,
    nests_too_deeply,
    optional,
    parse_json,
)
from .errors import ConfigChangedError, ImageSetError

logger = logging.getLogger(__name__)

SCHEMA = "bsgal.image_set/1"
META_NAME = "meta.json"


def _is_id_key(key: str) -> bool:
    return key.isascii() and key.isdecimal() and str(int(key)) == key and is_int(int(key))


def _is_count(value: Any) -> bool:
    counts = value.items() if isinstance(value, dict) else ()
    return is_int(value, 1) or (
        isinstance(value, dict) and all(_is_id_key(key) and is_int(n) for key, n in counts)
    )


def _is_prompted(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_name(value.get("name"))
        and isinstance(value.get("prompts"), dict)
        and all(isinstance(prompt, str) for prompt in value["prompts"].values())
    )


IMAGES_PER_CATEGORY = Rule(
    "be an int of at least 1, or an object of ints of at least 0 by category id", _is_count
)
_CATEGORIES = Rule(
    "be an object of name and prompts by category id",
    lambda value: (
        isinstance(value, dict)
        and all(_is_id_key(key) and _is_prompted(entry) for key, entry in value.items())
    ),
)
_PIPELINE: Schema = {"class": NAME, "dtype": NAME, "scheduler": {"class": NAME}}
_META: Schema = {
    "config": {
        "plan": {
            "seed": INT,
            "images_per_category": IMAGES_PER_CATEGORY,
            "negative_prompt": optional(TEXT),
            "categories": _CATEGORIES,
        },
        "sampling": {
            "num_inference_steps": COUNT,
            "guidance_scale": optional(NUMBER),
            "height": optional(COUNT),
            "width": optional(COUNT),
            "max_redraws": ID,
            "blank_std": NUMBER,
            "pipeline_arguments": OBJECT,
        },
        "pipeline": {**_PIPELINE, "upscaler": _PIPELINE},
    },
    "model": {"id": TEXT, "revision": optional(TEXT), "weight_hash": NAME},
    "versions": OBJECT,
    "execution": OBJECT,
}
# Another writer of the format may have no settings of this kind.
_MAY_LACK = frozenset(
    {
        "config",
        "config.plan",
        "config.sampling",
        "config.sampling.pipeline_arguments",
        "config.pipeline",
        "config.pipeline.upscaler",
        "model",
        "model.revision",
        "versions",
        "execution",
    }
)


def with_schema(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the meta with its schema, as it will be after writing and reading."""
    return dict(json.loads(json.dumps({"schema": SCHEMA, **meta})))


def write_meta(root: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` atomically."""
    content = json.dumps(meta, indent=1, ensure_ascii=False) + "\n"
    write_atomically(root / META_NAME, content.encode())


def read_meta(root: Path) -> dict[str, Any] | None:
    """Return the checked `meta.json` of an image set's folder, or None if there is none.

    Raises:
        ImageSetError: The file cannot be read, has another schema, or holds what it must not.
    """
    meta = read_any_meta(root, SCHEMA)
    if meta is not None:
        check_object(meta, _META, str(root / META_NAME), ImageSetError, may_lack=_MAY_LACK)
    return meta


def read_any_meta(root: Path, expected: str) -> dict[str, Any] | None:
    """Return the `meta.json` of a folder, of which nothing but its schema was checked.

    Raises:
        ImageSetError: The file cannot be read or has another schema.
    """
    path = root / META_NAME
    try:
        meta = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ImageSetError(f"{path} cannot be read: {error}") from error
    schema = meta.get("schema") if isinstance(meta, dict) else None
    if schema != expected:
        raise ImageSetError(f"{path} has schema {schema!r}; this version reads {expected!r} only")
    if nests_too_deeply(meta):
        raise ImageSetError(f"{path} nests too deeply")
    return dict(meta)


def setting(meta: Mapping[str, Any], name: str, root: Path) -> Any:
    """Return a setting by its dotted name, for example `"model.id"`.

    Raises:
        ImageSetError: The meta file lacks it.
    """
    value: Any = meta
    for key in name.split("."):
        if key not in value:
            raise ImageSetError(f"{root / META_NAME} lacks {name!r}, so this cannot be done")
        value = value[key]
    return value


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
    another number of images per category. Of a scheduler's settings those are compared that both
    metas name, since a library adds and drops some; the others are logged.

    Raises:
        ConfigChangedError: They differ; the message names the first difference.
    """
    before, now = _compared(old), _compared(new)
    pipelines = [one["config"].get("pipeline", {}) for one in (before, now)]
    unshared = sorted(_drop_unshared(pipelines[0], pipelines[1], "config.pipeline"))
    if difference := first_difference(before, now):
        raise ConfigChangedError(
            f"{root} holds an image set made with another configuration: {difference}; use the "
            "old setting to continue it, or another folder for a new set"
        )
    if unshared:
        logger.warning(
            "%s was begun with other libraries; scheduler settings that only the old or the new "
            "ones name were not compared: %s",
            root,
            ", ".join(unshared),
        )


def _compared(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of what must stay the same in a set."""
    config = copy.deepcopy(dict(meta.get("config", {})))
    config.get("plan", {}).pop("images_per_category", None)
    weight_hash = meta.get("model", {}).get("weight_hash")
    return {"config": config, "model": {"weight_hash": weight_hash}}


def _drop_unshared(before: Any, now: Any, path: str) -> Iterator[str]:
    """Drop what only one of two pipelines' schedulers names, and yield its dotted names."""
    for key in before.keys() & now.keys():
        if key == "scheduler":
            for name in before[key].keys() ^ now[key].keys():
                before[key].pop(name, None)
                now[key].pop(name, None)
                yield f"{path}.{key}.{name}"
        elif key == "upscaler":
            yield from _drop_unshared(before[key], now[key], f"{path}.{key}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
