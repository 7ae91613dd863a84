"""Append-only JSON lines and atomic files: nothing half written is ever taken for whole."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .errors import ImageSetError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then move it into place."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of every whole line; a last line without its end is dropped.

    Raises:
        ImageSetError: A whole line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ImageSetError(f"{path}, line {number}: not valid JSON: {error}") from error
            if not isinstance(value, dict):
                raise ImageSetError(f"{path}, line {number}: must be a JSON object, got {value!r}")
            yield number, value


class JsonlAppender:
    """Appends objects to a JSON-lines file, each with one write; cuts a torn last line first.

    Raises:
        ImageSetError: Another process appends to the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        _lock(self._file)
        _cut_torn_line(path)

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one object as one line.

        Raises:
            OSError: The line did not fit on the disk.
        """
        line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(f"no space left for {self._file.name}")

    def close(self) -> None:
        """Make sure that everything is on the disk, and close the file."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(file: BinaryIO) -> None:
    """Keep other processes from appending until the file is closed; a killed one lets go of it."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ImageSetError(
            f"another run is writing to {file.name}; wait for its end, or use another folder"
        ) from None


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        # Rows are short, so the last line's start is near; go back block by block all the same.
        keep, block = end, 1 << 16
        while keep > 0:
            start = max(0, keep - block)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)
