"""The fields of one row of a manifest, taken out one by one and checked."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from bsgal_mask._files import is_path_safe, stays_inside
from bsgal_mask._jsonl import Row

_INT64_MAX = 2**63 - 1
_SHA256 = re.compile("[0-9a-f]{64}")
# JSON can name the halves of a character that UTF-8 has no bytes for.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Fields:
    """Read one row; a field that is missing is null.

    Every method raises `ValueError` that names place, field, what is required and what came.
    """

    row: Row
    where: str
    """File and line, for messages."""

    def refused(self, key: str, required: str) -> ValueError:
        """Return the error for a field that is not as required."""
        # Bounded: what came may be of any length and depth.
        got = reprlib.repr(self.row.get(key))
        return ValueError(f"{self.where}: {key!r} must be {required}, got {got}")

    def is_null(self, key: str) -> bool:
        """Tell whether a field is null or missing."""
        return self.row.get(key) is None

    def text(self, key: str) -> str:
        """Return any text, which may be empty."""
        value = self.row.get(key)
        if not isinstance(value, str) or _HALF_CHARACTER.search(value):
            raise self.refused(key, "text")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return any text, or None."""
        return None if self.is_null(key) else self.text(key)

    def name(self, key: str) -> str:
        """Return text that is not blank."""
        if not self.text(key).strip():
            raise self.refused(key, "text that is not blank")
        return self.text(key)

    def one_of(self, key: str, choices: Sequence[str]) -> str:
        """Return one of a few words."""
        if self.text(key) not in choices:
            raise self.refused(key, f"one of {', '.join(choices)}")
        return self.text(key)

    def file_name(self, key: str) -> str:
        """Return text that can be used as a file name on any system."""
        if not is_path_safe(self.text(key)):
            raise self.refused(key, "text that can be a file name")
        return self.text(key)

    def file(self, key: str) -> str:
        """Return a `/`-separated path that leads nowhere but into the manifest's folder."""
        if not stays_inside(self.text(key)):
            raise self.refused(key, "a plain path inside the folder")
        return self.text(key)

    def sha256(self, key: str) -> str:
        """Return a SHA-256, 64 hexadecimal digits in lower case."""
        if not _SHA256.fullmatch(self.text(key)):
            raise self.refused(key, "64 hexadecimal digits")
        return self.text(key)

    def integer(self, key: str, least: int = 0, most: int = _INT64_MAX) -> int:
        """Return a whole number in [least, most]."""
        value = self.row.get(key)
        if not _is_integer(value, least, most):
            raise self.refused(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        """Return a number in [least, most]."""
        value = self.row.get(key)
        if not is_number(value, least, most):
            raise self.refused(key, f"a number from {least:g} to {most:g}")
        return value

    def box_xywh(self, key: str) -> tuple[int, int, int, int]:
        """Return a box of whole pixels, x and y at least 0, width and height at least 1."""
        value = self.row.get(key)
        least = (0, 0, 1, 1)
        if not isinstance(value, list) or len(value) != len(least):
            raise self.refused(key, "four whole numbers x, y, width, height")
        if not all(
            _is_integer(side, low, 2**31 - 1) for side, low in zip(value, least, strict=True)
        ):
            raise self.refused(key, "whole pixels x and y from 0, width and height from 1")
        x, y, width, height = value
        return x, y, width, height

    def numbers_by_name(self, key: str, least: float, most: float) -> dict[str, float | None]:
        """Return a JSON object whose values are null or numbers in [least, most]."""
        value = self.row.get(key)
        if not isinstance(value, dict) or not all(
            number is None or is_number(number, least, most) for number in value.values()
        ):
            raise self.refused(key, f"an object of numbers from {least:g} to {most:g}, or nulls")
        return value


def _is_integer(value: Any, least: int, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float, most: float) -> TypeGuard[float]:
    """Tell whether a JSON value is a number in [least, most]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
