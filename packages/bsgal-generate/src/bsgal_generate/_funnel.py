"""Counts, per category, how many images survive each stage from the plan to the instance pool."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ._image_set import MANIFEST_NAME, ImageSet
from ._jsonl import read_jsonl
from ._meta import META_NAME, read_any_meta
from ._schema import FILE_NAME, TEXT, Schema, check_object, one_of, optional
from .errors import ImageSetError

POOL_SCHEMA = "bsgal.instance_pool/1"
_KEPT = "kept"
_POOL_ROW: Schema = {
    "sample_id": FILE_NAME,
    "status": one_of(_KEPT, "dropped"),
    "reason": optional(TEXT),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryFunnel:
    """What became of one category's samples.

    Attributes:
        category_id: The category's id.
        category_name: The category's name as the data set spells it.
        n_samples: Samples that were drawn at least once.
        n_drawn: Images drawn, redraws included.
        n_rejected: Drawn images that were not stored, by status.
        n_images: Stored images.
        n_kept: Instances in the pool; None if no pool was given.
        n_dropped: Stored images that gave no instance, by the code of the reason.
    """

    category_id: int
    category_name: str
    n_samples: int
    n_drawn: int
    n_rejected: Mapping[str, int]
    n_images: int
    n_kept: int | None
    n_dropped: Mapping[str, int]


def funnel(image_set: ImageSet, pool_dir: str | Path | None = None) -> tuple[CategoryFunnel, ...]:
    """Count every category's images stage by stage.

    Args:
        image_set: The image set.
        pool_dir: An instance pool cut from it; None stops at the images.

    Returns:
        One entry per category, sorted by id.

    Raises:
        ImageSetError: The pool is missing, damaged, or of another schema.
    """
    names = {row.category_id: row.category_name for row in image_set}
    stored = {row.sample_id: row.category_id for row in image_set if row.status == "ok"}
    outcomes = {} if pool_dir is None else pool_outcomes(Path(pool_dir))
    rejected = _count((r.category_id, r.status) for r in image_set.attempts if r.status != "ok")
    ended = _count(
        (category_id, outcomes[sample_id])
        for sample_id, category_id in stored.items()
        if sample_id in outcomes
    )
    n_samples = Counter(row.category_id for row in image_set)
    n_drawn = Counter(row.category_id for row in image_set.attempts)
    n_images = Counter(stored.values())
    return tuple(
        CategoryFunnel(
            category_id=category_id,
            category_name=names[category_id],
            n_samples=n_samples[category_id],
            n_drawn=n_drawn[category_id],
            n_rejected=rejected[category_id],
            n_images=n_images[category_id],
            n_kept=None if pool_dir is None else ended[category_id][_KEPT],
            n_dropped={why: n for why, n in ended[category_id].items() if why != _KEPT},
        )
        for category_id in sorted(names)
    )


def funnel_table(funnels: Iterable[CategoryFunnel]) -> str:
    """Return the funnel as text, one category a line and a last line with the sums."""
    funnels = list(funnels)
    lines = [f"{'id':>6} {'drawn':>7} {'images':>7} {'kept':>7}  category, and what was lost"]
    for entry in funnels:
        losses = [*entry.n_rejected.items(), *entry.n_dropped.items()]
        lost = ", ".join(f"{n} {why}" for why, n in losses)
        kept = "-" if entry.n_kept is None else entry.n_kept
        lines.append(
            f"{entry.category_id:>6} {entry.n_drawn:>7} {entry.n_images:>7} {kept:>7}  "
            + entry.category_name
            + (f": {lost}" if lost else "")
        )
    kept_counts = [entry.n_kept for entry in funnels if entry.n_kept is not None]
    lines.append(
        f"{'all':>6} {sum(e.n_drawn for e in funnels):>7} {sum(e.n_images for e in funnels):>7} "
        f"{sum(kept_counts) if kept_counts else '-':>7}"
    )
    return "\n".join(lines)


def pool_outcomes(pool_dir: Path) -> dict[str, str]:
    """Return, by sample, `kept` or the code of the reason for dropping it."""
    if read_any_meta(pool_dir, POOL_SCHEMA) is None:
        raise ImageSetError(f"{pool_dir} is not an instance pool: it has no {META_NAME}")
    outcomes = {}
    manifest = pool_dir / MANIFEST_NAME
    for number, row in read_jsonl(manifest):
        check_object(row, _POOL_ROW, f"{manifest}, line {number}", ImageSetError)
        # A reason is a code, a colon and the details: "area: 0.97 of the image is too much".
        code = str(row["reason"]).partition(":")[0]
        outcomes[row["sample_id"]] = _KEPT if row["status"] == _KEPT else code
    return outcomes


def _count(pairs: Iterable[tuple[int, str]]) -> dict[int, Counter[str]]:
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for category_id, what in pairs:
        counts[category_id][what] += 1
    return counts
