"""Read a pool's manifest into compact arrays.

A pool may hold a million instances and every loader worker needs the index, so it is a handful
of arrays (about 100 bytes per instance, mostly the two strings), not a list of objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import ByteArray, IntArray
from bsgal_paste.errors import PoolFormatError

POOL_SCHEMA = "bsgal.instance_pool/1"


@dataclass(frozen=True, slots=True)
class StringTable:
    """Hold many strings in two arrays: their UTF-8 bytes, and where each one ends."""

    data: ByteArray
    ends: IntArray

    @classmethod
    def of(cls, strings: Sequence[str]) -> StringTable:
        """Pack the strings."""
        encoded = [string.encode() for string in strings]
        ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes().decode()


@dataclass(frozen=True, slots=True)
class PoolIndex:
    """Hold the kept rows of a pool, sorted by category and instance id.

    The order does not depend on the order of the manifest's rows, so neither does a seeded draw.
    """

    instance_ids: StringTable
    category_ids: IntArray
    label_mask_thresholds: ByteArray
    files: StringTable
    """Image files relative to the pool's folder; empty strings for a pool in memory."""
    lines: npt.NDArray[np.int32]
    """Line of each row in the manifest, from 1, for messages."""
    category_names: dict[int, str]
    n_dropped: int
    manifest_sha256: str


def read_pool_meta(root: Path) -> dict[str, Any]:
    """Read and check `meta.json` of a pool.

    Raises:
        PoolFormatError: The folder is no pool, or a pool of another schema version.
    """
    path = root / "meta.json"
    if not path.is_file():
        raise PoolFormatError(
            f"{root} is not an instance pool: it has no meta.json; "
            "give the folder that `bsgal-mask run --out` wrote"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PoolFormatError(f"{path} is not valid JSON: {error}") from error
    schema = meta.get("schema") if isinstance(meta, dict) else None
    if schema != POOL_SCHEMA:
        raise PoolFormatError(
            f"{path} has schema {schema!r}, this version reads {POOL_SCHEMA!r}; "
            "write the pool again, or install the bsgal-paste that matches it"
        )
    return dict(meta)


def read_pool_index(manifest: Path) -> PoolIndex:
    """Read the manifest; of several rows with one id the last counts.

    Raises:
        PoolFormatError: A row is malformed or leaves the pool's folder.
    """
    digest = hashlib.sha256()
    rows: dict[str, tuple[int, str, int, str, int] | None] = {}
    names: dict[int, str] = {}
    for line, row in _json_lines(manifest, digest):
        where = f"{manifest}, line {line}"
        instance_id = _field(row, "instance_id", str, where)
        if _status(row, where) == "dropped":
            rows[instance_id] = None
            continue
        category_id = _field(row, "category_id", int, where)
        name = _field(row, "category_name", str, where)
        if names.setdefault(category_id, name) != name:
            raise PoolFormatError(
                f"{where}: category {category_id} is called {name!r}, "
                f"but an earlier row calls it {names[category_id]!r}"
            )
        file = safe_relative_path(_field(row, "file", str, where), where)
        threshold = row.get("label_mask_threshold", 128)
        if type(threshold) is not int or not 0 <= threshold <= 255:
            raise PoolFormatError(
                f"{where}: label_mask_threshold must be an integer 0-255, got {threshold!r}"
            )
        rows[instance_id] = (category_id, instance_id, threshold, file, line)
    kept = sorted(row for row in rows.values() if row is not None)
    used = {row[0] for row in kept}
    return PoolIndex(
        instance_ids=StringTable.of([row[1] for row in kept]),
        category_ids=np.array([row[0] for row in kept], dtype=np.int64),
        label_mask_thresholds=np.array([row[2] for row in kept], dtype=np.uint8),
        files=StringTable.of([row[3] for row in kept]),
        lines=np.array([row[4] for row in kept], dtype=np.int32),
        category_names={key: names[key] for key in sorted(used)},
        n_dropped=len(rows) - len(kept),
        manifest_sha256=digest.hexdigest(),
    )


def safe_relative_path(file: str, where: str) -> str:
    """Give `file` back if it is relative and stays below its root, on any platform.

    Raises:
        PoolFormatError: It does not.
    """
    parts = PurePosixPath(file).parts
    if not parts or ".." in parts or parts[0] == "/" or PureWindowsPath(file).anchor:
        raise PoolFormatError(
            f"{where}: file {file!r} must be a relative path inside the pool's folder"
        )
    return file


def _json_lines(path: Path, digest: hashlib._Hash) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            digest.update(line)
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return  # a writer was stopped in the middle of its last row
                raise PoolFormatError(f"{path}, line {number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise PoolFormatError(f"{path}, line {number}: expected an object, got {row!r}")
            yield number, row


def _status(row: dict[str, Any], where: str) -> str:
    status = row.get("status")
    if status not in ("kept", "dropped"):
        raise PoolFormatError(f"{where}: status must be 'kept' or 'dropped', got {status!r}")
    return str(status)


def _field(row: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = row.get(key)
    if type(value) is not kind or value == "":
        raise PoolFormatError(f"{where}: {key} must be {kind.__name__}, got {value!r}")
    return value
