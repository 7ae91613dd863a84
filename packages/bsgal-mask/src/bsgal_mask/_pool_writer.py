"""Writing an instance pool: RGBA cut-outs with one manifest row per image of the image set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bsgal_mask._files import write_atomically, write_json
from bsgal_mask._jsonl import ManifestAppender, Row, read_rows
from bsgal_mask.errors import PoolError

SCHEMA = "bsgal.instance_pool/1"


class PoolWriter:
    """Add rows to a new pool, or to one that an earlier run with equal settings left.

    Args:
        root: Folder of the pool; made if missing.
        config: Everything that decides the rows, as JSON values.
        source: Where the images come from, as JSON values.
        versions: Library versions, written for information; a change is not refused.

    Raises:
        PoolError: The folder holds a pool of another schema, configuration or source (the
            message names the differences), or cannot be written.
    """

    def __init__(
        self,
        root: Path,
        *,
        config: Mapping[str, Any],
        source: Mapping[str, Any],
        versions: Mapping[str, str],
    ) -> None:
        self.root = root
        manifest_path = root / "manifest.jsonl"
        settings = {"config": config, "source": source}
        try:
            if not _is_continued(root, settings):
                meta = {"schema": SCHEMA, **settings, "versions": versions}
                write_json(root / "meta.json", meta)
            self.rows = read_pool_rows(root) if manifest_path.exists() else {}
            self._appender = ManifestAppender(manifest_path)
        except OSError as error:
            raise PoolError(f"cannot write the pool {root} ({error})") from None

    def write(self, row: Row, png: bytes | None = None) -> None:
        """Store a kept instance's file, if there is one, then its row.

        Args:
            row: The row without `file` and `sha256`, which are filled in. A row that the pool
                already holds in the same form is not written again.
            png: The RGBA file of a kept instance; or of a dropped one that `keep_after_all` may
                still be called for, whose row names no file until then.
        """
        file, sha256 = None, None
        if png is not None:
            path = _file_of(row)
            write_atomically(self.root / path, png)
            if row["status"] == "kept":
                file, sha256 = path, hashlib.sha256(png).hexdigest()
        row = row | {"file": file, "sha256": sha256}
        if self.rows.get(row["instance_id"]) != row:
            self._appender.append(row)
            self.rows[row["instance_id"]] = row

    def keep_after_all(self, row: Row) -> None:
        """Store the row of an instance whose file was written while it was still dropped."""
        path = self.root / _file_of(row)
        if path.is_file():
            self.write(row, path.read_bytes())

    def remove_file(self, row: Row) -> None:
        """Remove the file of a dropped row, if it is there."""
        (self.root / _file_of(row)).unlink(missing_ok=True)

    def __enter__(self) -> PoolWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bring the rows to the disk."""
        self._appender.__exit__(kind, error, traceback)


def _file_of(row: Row) -> str:
    return f"instances/{row['category_id']}/{row['instance_id']}.png"


def read_pool_rows(root: Path) -> dict[str, Row]:
    """Return a pool's rows by `instance_id`; of rows with the same id the last one counts.

    Raises:
        PoolError: The folder is not a pool of this schema, or its manifest is malformed.
    """
    _read_meta(root)
    try:
        return {row["instance_id"]: row for _, row in read_rows(root / "manifest.jsonl")}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError) as error:
        raise PoolError(f"malformed pool manifest: {error}") from None


def _read_meta(root: Path) -> dict[str, Any]:
    path = root / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PoolError(f"{root} is not an instance pool: it has no meta.json") from None
    except ValueError as error:
        raise PoolError(f"{path} is not JSON ({error})") from None
    schema = meta.get("schema") if isinstance(meta, dict) else None
    if schema != SCHEMA:
        raise PoolError(f"{path}: schema must be {SCHEMA!r}, got {schema!r}")
    return dict(meta)


def _is_continued(root: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether the folder holds a pool of exactly these settings; refuse any other pool."""
    if not (root / "meta.json").exists():
        if (root / "manifest.jsonl").exists():
            raise PoolError(f"{root} has a manifest.jsonl but no meta.json; choose another folder")
        return False
    meta = _read_meta(root)
    before = _flatten({key: meta.get(key) for key in settings})
    now = _flatten(settings)
    differences = [
        f"{key}: {before.get(key, 'absent')} before, {now.get(key, 'absent')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, "absent") != now.get(key, "absent")
    ]
    if differences:
        raise PoolError(
            f"{root} was begun with other settings ({'; '.join(differences)}); use the same "
            "settings to continue it, or choose another folder"
        )
    return True


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested dicts as one dict with dotted keys; everything else is a leaf, as JSON."""
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
