"""Dotted keys and their values: found, read from text or JSON, and checked against their types."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, Literal

__all__ = ["checked", "declared", "parse", "require"]


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def declared(parts: Any, key: str) -> tuple[str, str, Any]:
    """Return part, name and declared type of a dotted key.

    Args:
        parts: a dataclass of dataclasses.
        key: such as `schedule.n_steps`.

    Raises:
        ValueError: there is no such key; the message names the nearest one.
    """
    known = {
        f"{part.name}.{name}": (part.name, name, annotation)
        for part in dataclasses.fields(parts)
        for name, annotation in typing.get_type_hints(type(getattr(parts, part.name))).items()
    }
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise ValueError(f"unknown recipe key `{key}`; the nearest is `{nearest[0]}`")
    return known[key]


def parse(text: str, annotation: Any, key: str) -> Any:
    """Read the value of `key` from what was typed: as JSON where the type is not a string.

    Raises:
        ValueError: it cannot be read, or is of another type than `annotation`.
    """
    inner = _unless_none(annotation)
    if inner is not None:
        return None if text == "null" else parse(text, inner, key)
    if annotation is str or typing.get_origin(annotation) is Literal:
        return checked(text, annotation, key)
    try:
        value = json.loads(text.lower() if annotation is bool else text)
    except json.JSONDecodeError as error:
        raise ValueError(f"recipe key `{key}`: cannot read `{text}` ({error})") from None
    return checked(value, annotation, key)


def checked(value: Any, annotation: Any, key: str) -> Any:
    """Return the value of `key` in its declared type.

    Raises:
        ValueError: it is of another type; the message names the key and what it takes.
    """
    inner = _unless_none(annotation)
    if inner is not None:
        return None if value is None else checked(value, inner, key)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            raise ValueError(f"recipe key `{key}` must be one of {', '.join(choices)}: `{value}`")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        item, *rest = typing.get_args(annotation)
        if rest and rest[0] is not Ellipsis and len(value) != len(rest) + 1:
            raise ValueError(f"recipe key `{key}` needs {len(rest) + 1} values, got {value}")
        return tuple(checked(element, item, key) for element in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, but `schedule.n_steps=true` is a mistake.
    if origin is None and type(value) is annotation:
        return value
    raise ValueError(
        f"recipe key `{key}` takes {getattr(annotation, '__name__', annotation)}, got {value!r}"
    )


def _unless_none(annotation: Any) -> Any:
    """Return X of `X | None`; None for a type that does not take None."""
    # `Literal[...] | None` is of another kind than `float | None` before Python 3.14.
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return None
    (inner,) = (one for one in typing.get_args(annotation) if one is not types.NoneType)
    return inner
