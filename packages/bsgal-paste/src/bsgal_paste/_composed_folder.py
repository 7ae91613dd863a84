"""The folder of an augmented data set: whose it is, and what in it is whole."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bsgal_paste._manifest import ManifestAppender, parse_json, read_rows, write_atomically

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.jsonl"


@contextmanager
def opened_folder(root: Path, meta: Mapping[str, Any]) -> Iterator[ManifestAppender]:
    """Begin or go on with a run's folder as the only process that writes it.

    Args:
        root: The folder; made if it is missing.
        meta: What the run is: it becomes `meta.json`, or its schema, config and source are those
            that are there.

    Raises:
        ValueError: The folder holds something else or the output of another run, `meta.json` is
            damaged, or another process is writing.
    """
    _refuse_other_run(root, meta)
    root.mkdir(parents=True, exist_ok=True)
    with ManifestAppender(root / _MANIFEST) as appender:
        # Once more: another process may have begun a run in between.
        if not _refuse_other_run(root, meta):
            write_atomically(root / "meta.json", json.dumps(meta, indent=1).encode())
        (root / "images").mkdir(exist_ok=True)
        for leftover in [*root.glob(".*.tmp"), *(root / "images").glob(".*.tmp")]:
            leftover.unlink()
        yield appender


def sealed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a row with a hash of its content, by which `whole_rows` knows it."""
    return {**row, "row_sha256": _row_sha256(row)}


def whole_rows(root: Path, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Read the rows of these names that are as they were written, and so are their images.

    What was changed or is missing is reported, and left out.

    Raises:
        ValueError: A line of the manifest is no row.
    """
    rows: dict[str, dict[str, Any]] = {}
    n_changed = 0
    for _, row in read_rows(root / _MANIFEST, ValueError):
        seal = row.pop("row_sha256", None)
        if seal == _row_sha256(row):
            rows[row["name"]] = row
        else:
            n_changed += 1
    written = {n: rows[n] for n in names if n in rows and rows[n]["status"] == "ok"}
    whole = {name: row for name, row in written.items() if _is_whole(root, row)}
    # A changed row stays in the manifest when a new one has replaced it.
    n_lost = len(written) - len(whole) + min(n_changed, len(names) - len(written))
    if n_lost:
        logger.warning("%s: %d images are missing or damaged and are made again", root, n_lost)
    return whole


def _is_whole(root: Path, row: Mapping[str, Any]) -> bool:
    try:
        content = (root / "images" / row["file"]).read_bytes()
    except FileNotFoundError:
        return False
    return bool(hashlib.sha256(content).hexdigest() == row["sha256"])


def _row_sha256(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _refuse_other_run(root: Path, meta: Mapping[str, Any]) -> bool:
    """Raise if a folder is not for this run; else say whether the run was begun there."""
    path = root / "meta.json"
    if not path.exists():
        if root.exists() and any(map(_is_foreign, root.iterdir())):
            raise ValueError(f"{root} is not empty and was not written by `compose`")
        return False
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is {error}; delete {root}, or give another folder") from error
    wanted = json.loads(json.dumps(meta))
    known = found if isinstance(found, dict) else {}
    differing = [key for key in ("schema", "config", "source") if known.get(key) != wanted[key]]
    if differing:
        raise ValueError(
            f"{root} holds the output of another run ({', '.join(differing)} in meta.json "
            "would change); give another folder, or the same settings"
        )
    return True


def _is_foreign(entry: Path) -> bool:
    """Say whether an entry is not what a run leaves that was killed before it wrote meta.json."""
    is_begun = entry.name == _MANIFEST and entry.is_file() and not entry.stat().st_size
    return entry.suffix != ".tmp" and not is_begun
