"""Files that survive a crash: whole rows, and whole files under their final name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def append_row(lines: BinaryIO, row: Mapping[str, Any]) -> None:
    """Append one JSON line with a single write."""
    lines.write(json.dumps(row).encode() + b"\n")
    lines.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines file and cut a torn last line off it.

    Raises:
        ValueError: A line other than the last is not JSON.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    rows = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from error
    return rows
