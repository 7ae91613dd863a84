"""Manifests of JSON lines, which survive a crash and have one writer; and files written whole.

A line ends with a newline. The last one may lack it: where it is a whole JSON object it counts,
otherwise its writer was stopped in the middle of it and it does not. Reading changes nothing.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    from hashlib import _Hash

if sys.platform == "win32":
    import msvcrt

    # The locked byte lies behind any manifest, because Windows keeps readers off locked bytes.
    _LOCKED_BYTE = 2**62

    def _lock(file: BinaryIO) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is there twice in one object; keep one of them")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_STRICT_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)


def parse_json(content: bytes, *, unique_keys: bool = False) -> Any:
    """Parse JSON as the standard has it: UTF-8 without a byte order mark, no NaN, no infinity.

    Args:
        content: The bytes of a file or a line.
        unique_keys: Refuse an object that has a key twice, of which the last one counts otherwise.

    Raises:
        ValueError: It is not that, or is nested too deeply.
    """
    if content.startswith(codecs.BOM_UTF8):
        raise ValueError("not valid JSON: it begins with a byte order mark; save it without one")
    try:
        return (_STRICT_DECODER if unique_keys else _DECODER).decode(content.decode())
    except RecursionError:
        raise ValueError("not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def read_rows(
    path: Path, error: type[ValueError], digest: _Hash | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a manifest, each with its line number from 1.

    Args:
        path: The manifest.
        error: What a bad line raises.
        digest: Updated with all bytes of the file.

    Raises:
        error: A line other than a torn last one is no JSON object; the message names it.
        OSError: The file cannot be read.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if digest is not None:
                digest.update(line)
            where = f"{path}, line {number}"
            is_whole = line.endswith(b"\n")
            try:
                row = parse_json(line)
            except ValueError as problem:
                if is_whole:
                    raise error(f"{where}: {problem}") from None
                return
            if isinstance(row, dict):
                yield number, row
            elif is_whole:
                raise error(f"{where}: must be a JSON object, got {line.strip()[:80]!r}")


class ManifestAppender:
    """Append rows to a manifest as its only writer, after mending how its last line ends.

    The lock is the operating system's: it ends with the process, however that ends.

    Args:
        path: The manifest; made if it is missing.

    Raises:
        ValueError: Another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        try:
            _lock(self._file)
        except OSError:
            self._file.close()
            raise ValueError(
                f"{path} is being written by another process; let it end, or give another folder"
            ) from None
        self._mend_end()

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row with a single write."""
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def _mend_end(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        last = content[content.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            counts = isinstance(parse_json(last), dict)
        except ValueError:
            counts = False
        if counts:
            self._file.write(b"\n")
        else:
            self._file.truncate(len(content) - len(last))

    def __enter__(self) -> ManifestAppender:
        """Give the appender itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bring the rows to the disk, close the file and release the lock."""
        os.fsync(self._file.fileno())
        self._file.close()
