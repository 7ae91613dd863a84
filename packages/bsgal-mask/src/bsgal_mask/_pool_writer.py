"""Writing an instance pool: RGBA cut-outs with one manifest row per image of the image set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bsgal_mask._files import write_atomically, write_json
from bsgal_mask._folder_lock import FolderLock
from bsgal_mask._jsonl import ManifestAppender, Row
from bsgal_mask._meta import MANIFEST_NAME, META_NAME
from bsgal_mask._pool_rows import SCHEMA, damage_of, file_of, read_pool_meta, read_pool_rows
from bsgal_mask.errors import PoolError


class PoolWriter:
    """Add rows to a new pool, or to one that an earlier run with equal settings left.

    Args:
        root: Folder of the pool; made if missing.
        config: Everything that decides the rows, as JSON values.
        source: Where the images come from, as JSON values.
        versions: Library versions, written for information; a change is not refused.

    Raises:
        PoolError: The folder holds a pool of another schema, configuration or source (the
            message names the differences), cannot be written, or another writer holds it.
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
        settings = {"config": config, "source": source}
        with ExitStack() as opened, _writing(root):
            opened.enter_context(FolderLock(root))
            if not _is_continued(root, settings):
                write_json(root / META_NAME, {"schema": SCHEMA, **settings, "versions": versions})
            # A run that was killed at its start has left none.
            self.rows = read_pool_rows(root) if (root / MANIFEST_NAME).exists() else {}
            self._appender = opened.enter_context(ManifestAppender(root / MANIFEST_NAME))
            self._opened = opened.pop_all()

    def write(self, row: Row, png: bytes | None = None) -> None:
        """Store a kept instance's file, if there is one, then its row.

        Args:
            row: The row without `file` and `sha256`, which are filled in. A row that the pool
                already holds in the same form is not written again.
            png: The RGBA file of a kept instance; or of a dropped one that `keep_after_all` may
                still be called for, whose row holds the hash but names no file until then.

        Raises:
            PoolError: The pool cannot be written.
        """
        file, sha256 = None, None
        with _writing(self.root):
            if png is not None:
                write_atomically(self.root / file_of(row), png)
                sha256 = hashlib.sha256(png).hexdigest()
                file = file_of(row) if row["status"] == "kept" else None
            self._put(row | {"file": file, "sha256": sha256})

    def _put(self, row: Row) -> None:
        if self.rows.get(row["instance_id"]) != row:
            self._appender.append(row)
            self.rows[row["instance_id"]] = row

    def keep_after_all(self, row: Row) -> bool:
        """Keep an instance whose file was written while it was still dropped.

        Returns:
            False if that file is not whole; the row is then left as it was.

        Raises:
            PoolError: The pool cannot be written.
        """
        if damage_of(self.root, row) is not None:
            return False
        with _writing(self.root):
            self._put(row | {"status": "kept", "reason": None, "file": file_of(row)})
        return True

    def remove_file(self, row: Row) -> None:
        """Remove the file of a dropped row, if it is there.

        Raises:
            PoolError: The pool cannot be written.
        """
        with _writing(self.root):
            (self.root / file_of(row)).unlink(missing_ok=True)

    def __enter__(self) -> PoolWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bring the rows to the disk and let other writers in."""
        self._opened.__exit__(kind, error, traceback)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise PoolError(
            f"another run is writing to the pool {root}; wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        raise PoolError(f"cannot write the pool {root} ({error})") from None


def _is_continued(root: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether the folder holds a pool of exactly these settings; refuse any other pool."""
    if not (root / META_NAME).exists():
        if (root / MANIFEST_NAME).exists():
            raise PoolError(
                f"{root} has a {MANIFEST_NAME} but no {META_NAME}; choose another folder"
            )
        return False
    meta = read_pool_meta(root)
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
