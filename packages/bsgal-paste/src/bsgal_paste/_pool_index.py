"""Read a pool's manifest into compact arrays.

A pool may hold a million instances and every loader worker needs the index, so it is a handful
of arrays (about 100 bytes per instance, mostly the two strings), not a list of objects.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import ByteArray, IntArray
from bsgal_paste._manifest import parse_json, read_rows
from bsgal_paste._names import is_category_id
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
        # A name on a disk may hold bytes that are no UTF-8, which Python keeps as surrogates.
        encoded = [string.encode(errors="surrogatepass") for string in strings]
        ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes().decode(errors="surrogatepass")


class PoolRow(NamedTuple):
    """Hold what a pool needs of one instance's row, in the order that rows are sorted by."""

    category_id: int
    instance_id: str
    label_mask_threshold: int = 128
    file: str = ""
    size_wh: tuple[int, int] = (0, 0)
    hash: int = 0
    line: int = 0


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
    sizes_wh: npt.NDArray[np.int32]
    """Width and height that each image must have `(n, 2)`, in pixels; 0 where that is not known."""
    hashes: npt.NDArray[np.uint64]
    """First 64 bits of the SHA-256 that each file must have; 0 where that is not known."""
    lines: npt.NDArray[np.int32]
    """Line of each row in the manifest, from 1, for messages."""
    category_names: dict[int, str]
    n_dropped: int
    manifest_sha256: str

    @classmethod
    def of(
        cls,
        rows: Iterable[PoolRow],
        names: Mapping[int, str],
        *,
        n_dropped: int = 0,
        manifest_sha256: str = "",
    ) -> PoolIndex:
        """Pack rows, in any order, and the names of at least their categories."""
        kept = sorted(rows)
        return cls(
            instance_ids=StringTable.of([row.instance_id for row in kept]),
            category_ids=np.array([row.category_id for row in kept], dtype=np.int64),
            label_mask_thresholds=np.array(
                [row.label_mask_threshold for row in kept], dtype=np.uint8
            ),
            files=StringTable.of([row.file for row in kept]),
            sizes_wh=np.array([row.size_wh for row in kept], dtype=np.int32).reshape(-1, 2),
            hashes=np.array([row.hash for row in kept], dtype=np.uint64),
            lines=np.array([row.line for row in kept], dtype=np.int32),
            category_names={i: names[i] for i in sorted({row.category_id for row in kept})},
            n_dropped=n_dropped,
            manifest_sha256=manifest_sha256,
        )


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
        meta = parse_json(path.read_bytes())
    except ValueError as error:
        raise PoolFormatError(f"{path}: {error}") from None
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
    rows: dict[str, PoolRow | None] = {}
    names: dict[int, str] = {}
    for line, fields in read_rows(manifest, PoolFormatError, digest):
        where = f"{manifest}, line {line}"
        row = checked_row(fields, line, where)
        if fields["status"] == "dropped":
            rows[row.instance_id] = None
            continue
        name = fields["category_name"]
        if names.setdefault(row.category_id, name) != name:
            raise PoolFormatError(
                f"{where}: category {row.category_id} is called {name!r}, "
                f"but an earlier row calls it {names[row.category_id]!r}"
            )
        rows[row.instance_id] = row
    kept = [row for row in rows.values() if row is not None]
    return PoolIndex.of(
        kept, names, n_dropped=len(rows) - len(kept), manifest_sha256=digest.hexdigest()
    )


def checked_row(fields: dict[str, Any], line: int, where: str) -> PoolRow:
    """Check a row against the schema of pool manifests; a dropped one names no file.

    Raises:
        PoolFormatError: A field is missing or wrong; the message names it and what it must be.
    """
    get: Callable[..., Any] = fields.get

    def require(key: str, holds: bool, what: str) -> None:
        if not holds:
            raise PoolFormatError(f"{where}: {key} must be {what}, got {_shown(get(key))}")

    status, instance_id, category_id = get("status"), get("instance_id"), get("category_id")
    require("status", status in ("kept", "dropped"), "'kept' or 'dropped'")
    require("instance_id", _is_text(instance_id), "str and not empty")
    require("category_id", is_category_id(category_id), "int, 0 to 2^63 - 1")
    require("category_name", _is_text(get("category_name")), "str and not empty")
    file = get("file")
    if status == "dropped":
        require("file", file is None, "null in a dropped row")
    else:
        require("file", _is_text(file), "str and not empty")
        safe_relative_path(file, where)
        if _PLACED_BY_IDS.fullmatch(file):
            # `bsgal-mask` names files by the row's ids: where they differ, one of them is damaged.
            own = f"instances/{category_id}/{instance_id}.png"
            require("file", file == own, f"{own!r}, as the row's ids have it")
    threshold = get("label_mask_threshold", 128)
    in_range = type(threshold) is int and 0 <= threshold <= 255
    require("label_mask_threshold", in_range, "an integer 0-255")
    box = get("bbox_xywh")
    require("bbox_xywh", box is None or _is_box(box), "4 whole numbers x, y, width, height or null")
    sha256 = get("sha256")
    is_hash = isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
    require("sha256", sha256 is None or is_hash, "64 hexadecimal digits or null")
    reason = get("reason")
    require("reason", reason is None or isinstance(reason, str), "text or null")
    return PoolRow(
        category_id=category_id,
        instance_id=instance_id,
        label_mask_threshold=threshold,
        file=file or "",
        size_wh=(0, 0) if box is None else (int(box[2]), int(box[3])),
        hash=0 if sha256 is None else int(sha256[:16], 16),
        line=line,
    )


_PLACED_BY_IDS = re.compile(r"instances/\d+/[^/]+\.png")
_SHA256 = re.compile("[0-9a-fA-F]{64}")


def _is_text(value: object) -> bool:
    # Half of a surrogate pair can be written in JSON, and is no text.
    if not isinstance(value, str) or value == "":
        return False
    return value.isascii() or not _SURROGATE.search(value)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(side) in (int, float) and math.isfinite(side) for side in value)
        and all(side == int(side) and 0 <= side < 2**31 for side in value)
        and min(value[2:]) >= 1
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def safe_relative_path(file: str, where: str) -> str:
    """Give `file` back if it is relative and stays below its root, on any platform.

    Raises:
        PoolFormatError: It does not.
    """
    # By hand: pathlib takes a third of the time of reading a manifest.
    parts = set(file.replace("\\", "/").split("/"))
    leaves = ".." in parts or parts <= {"", "."} or file[0] in "/\\" or file[1:2] == ":"
    if leaves or any(character in file for character in "\0|\\"):
        raise PoolFormatError(
            f"{where}: file {_shown(file)} must be a relative path inside the pool's folder, "
            "without '|' and backslash"
        )
    return file
