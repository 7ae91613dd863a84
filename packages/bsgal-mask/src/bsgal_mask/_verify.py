"""Whether every instance that a pool keeps is there and whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bsgal_mask._pool_rows import damage_of, read_pool_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What is wrong with a pool's files."""

    n_checked: int
    """Instances that the manifest keeps; all are read."""
    damaged: Mapping[str, str]
    """What is wrong with an instance's file, by instance id; empty if all are whole."""


def verify_pool(pool_dir: str | Path) -> VerifyReport:
    """Compare every kept instance's file with its row: hash, size and kind. Nothing is changed.

    Raises:
        PoolError: The folder is not a pool, or its manifest is malformed.
    """
    root = Path(pool_dir)
    kept = [row for row in read_pool_rows(root).values() if row["status"] == "kept"]
    damages = {row["instance_id"]: damage_of(root, row) for row in kept}
    return VerifyReport(
        n_checked=len(kept), damaged={key: why for key, why in damages.items() if why is not None}
    )
