"""What is computed from the user's annotation file and worth keeping, found again by its hash."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from bsgal_paste import ScaleStatistics

__all__ = ["cache_root", "file_sha256", "scale_statistics"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24


def cache_root() -> Path:
    """Return the folder for derived data: `bsgal-train` in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bsgal-train"


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def scale_statistics(annotations: Path, sha256: str, root: Path | None = None) -> ScaleStatistics:
    """Return the scales of an annotation file's objects by category.

    Measuring LVIS's training file takes as long as reading it; the result is kept in the cache
    under the file's hash, so a changed file is measured anew. A cache that cannot be read or
    written costs time, nothing else.

    Args:
        annotations: LVIS v1 JSON.
        sha256: of its content.
        root: folder of the cache; None is `cache_root()`.
    """
    path = (root or cache_root()) / "scales" / f"{sha256}.json"
    if path.is_file():
        try:
            return ScaleStatistics.load(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("measured scales anew, %s cannot be read: %s", path, error)
    statistics = ScaleStatistics.from_annotations(annotations)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        statistics.save(path)
    except OSError as error:
        logger.warning("scales are not kept for the next run: %s", error)
    return statistics
