"""Append-only JSON lines and atomic files: nothing half written is ever taken for whole."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ._schema import parse_json, shown
from .errors import ImageSetError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then move it into place."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of every line; a torn last line is left out.

    A last line without its end counts if it is a whole JSON object; otherwise its writer was
    stopped in the middle of it. Reading changes nothing.

    Raises:
        ImageSetError: The file cannot be read, or another line is not a JSON object in UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if number == 1 and line.startswith(codecs.BOM_UTF8):
                    raise ImageSetError(
                        f"{where}: it begins with a byte order mark; save the file without one"
                    )
                if line.endswith(b"\n"):
                    yield number, _object(line, where)
                elif _is_whole(line):
                    yield number, parse_json(line)
    except OSError as error:
        raise ImageSetError(f"{path} cannot be read: {error}") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise ImageSetError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImageSetError(f"{where}: must be a JSON object, got {shown(value)}")
    return value


def _is_whole(line: bytes) -> bool:
    """Return whether a last line lacks nothing but its end."""
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


class JsonlAppender:
    """Appends objects to a JSON-lines file, each with one write, after it has mended the end.

    A torn last line is cut off, a whole one gets its line end.

    Raises:
        ImageSetError: Another process appends to the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        _lock(self._file)
        _mend_end(path)

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


def _mend_end(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start, last = end, b""
        # Rows are short, so the last line's start is near; go back block by block all the same.
        while start > 0 and b"\n" not in last:
            block = min(start, 1 << 16)
            start = file.seek(start - block)
            last = file.read(block) + last
        last = last[last.rfind(b"\n") + 1 :]
        if last and _is_whole(last):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(end - len(last))
