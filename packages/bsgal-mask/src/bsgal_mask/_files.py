"""Files that are whole or absent, and paths that stay inside their folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from bsgal_mask.errors import ImageError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in its folder, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read, atomically."""
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_inside(root: Path, file: str) -> bytes:
    """Return the bytes of an image file that a manifest in the folder `root` names.

    Raises:
        ImageError: It cannot be read, or a link leads out of the folder.
    """
    path = root / file
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ImageError("a symbolic link leads out of the folder")
    return read_file(path)


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        # A pipe or a device could keep the reader waiting for ever.
        if path.exists() and not path.is_file():
            raise ImageError("cannot read the file (not a plain file)")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the file ({error.strerror})") from None


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_path_safe(name: str) -> bool:
    """Tell whether a name can be used as one part of a path on any system."""
    return (
        0 < len(name.encode()) <= 200
        and not name.startswith(".")
        and not name.endswith((".", " "))
        and not any(character in '/\\:*?"<>|' or ord(character) < 32 for character in name)
    )


def stays_inside(relative: str) -> bool:
    """Tell whether a manifest's `/`-separated path leads nowhere but into its own folder."""
    path = PurePosixPath(relative)
    return bool(relative) and all(is_path_safe(part) for part in path.parts)
