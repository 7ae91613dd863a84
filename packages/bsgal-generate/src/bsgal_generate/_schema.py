"""What the files of this package must hold: one rule a field, checked where a file is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn

MAX_INT = 2**63 - 1
# Far deeper than anything that is written here, far shallower than what Python can walk through.
_MAX_DEPTH = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def parse_json(content: bytes) -> Any:
    """Return the value that UTF-8 JSON without a byte order mark stands for.

    Raises:
        ValueError: It is no such JSON, holds NaN or an infinity by name, or nests too deeply.
    """
    try:
        # Bytes would be taken for UTF-16 or UTF-32 where they look like it.
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def nests_too_deeply(value: Any) -> bool:
    """Return whether a JSON value has more levels than any that this package writes."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level if _is_container(v))
        level = [one for values in inner for one in values]
        if not level:
            return False
    return True


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list))


@dataclass(frozen=True, slots=True)
class Rule:
    """What one field must hold.

    Attributes:
        words: The requirement, to follow "must".
        holds: Whether a JSON value meets it.
    """

    words: str
    holds: Callable[[Any], bool]


Schema = Mapping[str, "Rule | Schema"]


def check_object(
    value: Any,
    schema: Schema,
    where: str,
    error: type[ValueError],
    *,
    may_lack: frozenset[str] = frozenset(),
) -> None:
    """Check a JSON object; keys that the schema does not name are left alone.

    Args:
        value: What was read.
        schema: The rule of each field, or the schema of an object in it.
        where: File and line, for the message.
        error: What to raise.
        may_lack: Dotted names of the fields that need not be there.

    Raises:
        ValueError: An `error` that names the place and the field, what it must be and what it is.
    """
    _check(value, schema, "", where, error, may_lack)


def _check(
    value: Any,
    schema: Schema,
    path: str,
    where: str,
    error: type[ValueError],
    may_lack: frozenset[str],
) -> None:
    if not isinstance(value, dict):
        raise error(f"{where}: `{path}` must be a JSON object, got {shown(value)}")
    for key, rule in schema.items():
        name = f"{path}.{key}" if path else key
        if key not in value:
            if name not in may_lack:
                raise error(f"{where}: it lacks {name!r}")
        elif not isinstance(rule, Rule):
            _check(value[key], rule, name, where, error, may_lack)
        elif not rule.holds(value[key]):
            raise error(f"{where}: `{name}` must {rule.words}, got {shown(value[key])}")


def shown(value: Any) -> str:
    """Return a value in a form short enough for a message."""
    if _is_container(value):
        return f"a JSON {'object' if isinstance(value, dict) else 'list'} of length {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_text(value: Any) -> bool:
    """Return whether a value is a string that UTF-8 can hold, without NULs."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def is_name(value: Any) -> bool:
    """Return whether a value is text of one line with something to see in it."""
    return is_text(value) and bool(value.strip()) and not _CONTROL.search(value)


def is_int(value: Any, least: int = 0, most: int = MAX_INT) -> bool:
    """Return whether a value is a whole number in a range; True and False are none."""
    return type(value) is int and least <= value <= most


def _is_finite(value: Any) -> bool:
    return is_int(value, -MAX_INT) or (type(value) is float and math.isfinite(value))


def _is_file_name(value: Any) -> bool:
    return (
        is_name(value)
        and len(value) <= 200
        and value[0] != "."
        and value[-1] not in ". "
        and not any(character in '/\\:*?"<>|' for character in value)
    )


def _is_inside(value: Any) -> bool:
    parts = value.split("/") if isinstance(value, str) else [""]
    return all(map(_is_file_name, parts)) and PurePosixPath(value).as_posix() == value


def optional(rule: Rule) -> Rule:
    """Return the rule that lets null pass, too."""
    return Rule(f"{rule.words}, or be null", lambda value: value is None or rule.holds(value))


def one_of(*values: str) -> Rule:
    """Return the rule that a value is one of these."""
    return Rule(f"be one of {values}", lambda value: isinstance(value, str) and value in values)


TEXT = Rule("be text without NULs", is_text)
NAME = Rule("be a line of text that is not empty", is_name)
FILE_NAME = Rule("be text that can name a file", _is_file_name)
INSIDE = Rule("stay inside the set, as a path with forward slashes", _is_inside)
SHA256 = Rule(
    "be 64 hexadecimal digits",
    lambda value: isinstance(value, str) and _SHA256.fullmatch(value) is not None,
)
ID = Rule("be an int from 0 to 2**63 - 1", is_int)
INT = Rule("be an int", lambda value: type(value) is int)
COUNT = Rule("be an int of at least 1", lambda value: is_int(value, 1))
NUMBER = Rule("be a finite number", _is_finite)
OBJECT = Rule("be a JSON object", lambda value: isinstance(value, dict))
