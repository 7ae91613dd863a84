"""Keep the index of a large pool beside it on disk, for every process to map into memory.

Parsing a million rows takes seconds and hundreds of megabytes; mapping the arrays takes
milliseconds, and loader workers share the pages. The file is one head (JSON) and then the arrays,
so that renaming it into place replaces all of them at once.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_paste._pool_index import PoolIndex, StringTable, read_pool_index
from bsgal_paste.errors import PoolFormatError

_log = logging.getLogger(__name__)

INDEX_FILE = "manifest.index"
MIN_INDEXED_ROWS = 50_000
_SCHEMA = "bsgal.instance_pool_index/1"
_ALIGNMENT = 64
_DTYPES = {
    "instance_id_bytes": "<u1",
    "instance_id_ends": "<i8",
    "category_ids": "<i8",
    "label_mask_thresholds": "<u1",
    "file_bytes": "<u1",
    "file_ends": "<i8",
    "lines": "<i4",
}


@dataclass(frozen=True, slots=True)
class MappedPoolIndex(PoolIndex):
    """An index whose arrays are mapped from disk; it pickles as the name of their file."""

    path: Path
    fingerprint: list[int]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.fingerprint)


def open_index(root: Path) -> PoolIndex:
    """Give the index of a pool folder, mapped from disk if it was kept there and still fits.

    The index of a pool of at least `MIN_INDEXED_ROWS` kept rows is written beside the manifest on
    first use. Where that is impossible the index stays in memory, with a warning.

    Raises:
        PoolFormatError: The manifest is missing or malformed.
    """
    manifest = root / "manifest.jsonl"
    if not manifest.is_file():
        raise PoolFormatError(f"{manifest} is missing; the pool is incomplete")
    fingerprint = _fingerprint(manifest)
    path = root / INDEX_FILE
    mapped = _load(path, fingerprint)
    if mapped is not None:
        return mapped
    index = read_pool_index(manifest)
    if len(index.instance_ids) < MIN_INDEXED_ROWS:
        return index
    try:
        _save(index, path, fingerprint)
    except OSError as error:
        _log.warning("the index of %s is kept in memory, not on disk: %s", root, error)
        return index
    return _load(path, fingerprint) or index


def _fingerprint(manifest: Path) -> list[int]:
    status = manifest.stat()
    return [status.st_size, status.st_mtime_ns]


def _save(index: PoolIndex, path: Path, fingerprint: list[int]) -> None:
    arrays: tuple[npt.NDArray[Any], ...] = (
        index.instance_ids.data, index.instance_ids.ends, index.category_ids,
        index.label_mask_thresholds, index.files.data, index.files.ends, index.lines,
    )  # fmt: skip
    head = json.dumps(
        {
            "schema": _SCHEMA,
            "fingerprint": fingerprint,
            "lengths": [len(array) for array in arrays],
            "category_names": [[key, name] for key, name in index.category_names.items()],
            "n_dropped": index.n_dropped,
            "manifest_sha256": index.manifest_sha256,
        }
    ).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(head + b"\n")
        for array, dtype in zip(arrays, _DTYPES.values(), strict=True):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            file.write(np.ascontiguousarray(array, dtype=dtype).data)
    temporary.replace(path)


def _reopen(path: Path, fingerprint: list[int]) -> MappedPoolIndex:
    index = _load(path, fingerprint)
    if index is None:
        raise PoolFormatError(
            f"the index {path} changed since the pool was opened; open the pool again"
        )
    return index


def _load(path: Path, fingerprint: list[int]) -> MappedPoolIndex | None:
    """Map an index file; None if there is none, or one of other rows, or a damaged one."""
    try:
        with path.open("rb") as file:
            head: dict[str, Any] = json.loads(file.readline())
            start = file.tell()
        if head.get("schema") != _SCHEMA or head.get("fingerprint") != fingerprint:
            return None
        content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (OSError, ValueError, AttributeError):
        return None
    arrays: list[npt.NDArray[Any]] = []
    for dtype, length in zip(_DTYPES.values(), head["lengths"], strict=True):
        start += -start % _ALIGNMENT
        stop = start + np.dtype(dtype).itemsize * length
        if stop > len(content):
            return None
        arrays.append(content[start:stop].view(dtype))
        start = stop
    ids, id_ends, category_ids, thresholds, files, file_ends, lines = arrays
    return MappedPoolIndex(
        instance_ids=StringTable(ids, id_ends),
        category_ids=category_ids,
        label_mask_thresholds=thresholds,
        files=StringTable(files, file_ends),
        lines=lines,
        category_names=dict(head["category_names"]),
        n_dropped=head["n_dropped"],
        manifest_sha256=head["manifest_sha256"],
        path=path,
        fingerprint=fingerprint,
    )
