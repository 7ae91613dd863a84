"""Count what became of the images of a pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bsgal_mask._jsonl import Row
from bsgal_mask._pool_rows import read_pool_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSummary:
    """How many images a pool keeps and drops."""

    n_kept: int
    n_dropped: int
    dropped_by_reason: Mapping[str, int]
    """Count per reason code (the part of a row's `reason` before the colon), largest first."""
    kept_by_category: Mapping[str, int]
    """Count per category name, in the manifest's order; 0 for a category without instances."""

    def __str__(self) -> str:
        """Return a few lines for people."""
        n_categories = sum(count > 0 for count in self.kept_by_category.values())
        lines = [
            f"{self.n_kept + self.n_dropped} images: {self.n_kept} kept "
            f"({n_categories} of {len(self.kept_by_category)} categories), "
            f"{self.n_dropped} dropped"
        ]
        lines += [f"  {count:6d}  {code}" for code, count in self.dropped_by_reason.items()]
        return "\n".join(lines)


def summarise_pool(pool_dir: str | Path) -> PoolSummary:
    """Count the kept and dropped rows of an instance pool.

    Raises:
        PoolError: The folder is not a pool, or its manifest is malformed.
    """
    return summarise_rows(read_pool_rows(Path(pool_dir)).values())


def summarise_rows(rows: Iterable[Row]) -> PoolSummary:
    """Count the kept and dropped among a pool's rows."""
    reasons: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for row in rows:
        is_kept = row["status"] == "kept"
        kept[row["category_name"]] += is_kept
        if not is_kept:
            reasons[row["reason"].partition(":")[0]] += 1
    return PoolSummary(
        n_kept=kept.total(),
        n_dropped=reasons.total(),
        dropped_by_reason=dict(reasons.most_common()),
        kept_by_category=dict(kept),
    )
