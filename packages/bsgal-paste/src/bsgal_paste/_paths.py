"""Check paths given by callers, and read files that lists name."""

from __future__ import annotations

import os
from pathlib import Path


def as_path(value: str | os.PathLike[str], name: str) -> Path:
    """Give an argument as a path.

    Raises:
        TypeError: It is no text or path.
        ValueError: It cannot be the name of a file.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"`{name}` must be a path, got {type(value).__name__}")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b"\0"
    if isinstance(os.fspath(value), bytes) or b"\0" in encoded:
        raise ValueError(f"`{name}` must be a path, got {value!r}, which no file can be called")
    return Path(value)


def read_file_inside(root: Path, file: str, max_bytes: int) -> bytes:
    """Read a regular file of a folder; not what a link outside of it or a pipe would give.

    Raises:
        ValueError: It lies outside, is none, or has more than `max_bytes`.
        OSError: It cannot be read.
    """
    path = root / file
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ValueError("the file lies outside the pool's folder")
    n_bytes = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is no regular file")
    if n_bytes > max_bytes:
        raise ValueError(f"the file has {n_bytes} bytes, over the limit of {max_bytes}")
    return path.read_bytes()
