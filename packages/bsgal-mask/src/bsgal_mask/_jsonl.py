"""Append-only JSON-lines manifests that survive being killed half-way through a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

Row: TypeAlias = dict[str, Any]


def parse_object(content: bytes) -> Row:
    """Return the one JSON object that is all of `content`, UTF-8 without a byte order mark.

    Raises:
        ValueError: It is anything else.
    """
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        if content.startswith(b"\xef\xbb\xbf"):
            raise ValueError("begins with a byte order mark; save it without one") from None
        raise ValueError(f"not JSON ({error})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    return value


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number from 1, row) of a manifest; a torn last line is left out.

    A line is torn when it lacks its line end and is not a whole JSON object.

    Raises:
        ValueError: Any other line is not a JSON object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_object(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield number, row


class ManifestAppender:
    """Append whole rows to a manifest; a torn last line is cut off first."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            _mend_end(path)
        self._file = path.open("ab", buffering=0)

    def append(self, row: Row) -> None:
        """Write one row with a single write.

        Raises:
            OSError: The row did not fit on the disk.
        """
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(f"no space is left for {self._file.name}")

    def __enter__(self) -> ManifestAppender:
        """Return the appender itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bring the rows to the disk and close the file."""
        os.fsync(self._file.fileno())
        self._file.close()


def _mend_end(path: Path) -> None:
    """Cut an unfinished last line off, or finish one that lacks only its line end."""
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    start = content.rfind(b"\n") + 1
    try:
        parse_object(content[start:])
    except ValueError:
        with path.open("r+b") as file:
            file.truncate(start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
