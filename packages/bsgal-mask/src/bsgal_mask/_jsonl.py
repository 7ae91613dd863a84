"""Append-only JSON-lines manifests that survive being killed half-way through a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number from 1, row) of a manifest; a torn last line is left out.

    A line is torn when it lacks its line end and is not a whole JSON object.

    Raises:
        ValueError: Any other line is not a JSON object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object")
            yield number, row


class ManifestAppender:
    """Append whole rows to a manifest; a torn last line is cut off first."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            _mend_end(path)
        self._file = path.open("ab", buffering=0)

    def append(self, row: Row) -> None:
        """Write one row with a single write."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

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
        json.loads(content[start:])
    except ValueError:
        with path.open("r+b") as file:
            file.truncate(start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")
