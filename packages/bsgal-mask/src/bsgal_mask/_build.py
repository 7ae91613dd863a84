"""From an image set to an instance pool."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bsgal_mask._card import write_card
from bsgal_mask._choice import CategoryBar, Choice, FixedChoice
from bsgal_mask._clean_up import CleanUp
from bsgal_mask._cutter import CLIP_SCORE, Cutter, Segmented
from bsgal_mask._edges import Edges
from bsgal_mask._filters import AreaFilter, Filter
from bsgal_mask._image_set import ImageRow, ImageSet
from bsgal_mask._jsonl import Row
from bsgal_mask._meta import MANIFEST_NAME
from bsgal_mask._method_runs import METHOD, NON_FINITE, MethodRuns
from bsgal_mask._pool_rows import damage_of, read_pool_rows
from bsgal_mask._pool_writer import PoolWriter
from bsgal_mask._segmenter import Image, Segmenter, without_alpha
from bsgal_mask._similarity import SimilarityRule
from bsgal_mask._summary import PoolSummary, summarise_rows
from bsgal_mask.errors import ImageError

_LOGGER = logging.getLogger(__name__)
# Reasons that lie in the image or in the method's work, not in the mask: a repaired or redrawn
# image is tried again, and a method that failed may have been mended.
_IMAGE_SET, _IMAGE = "image-set", "image"
_RETRIED = (_IMAGE_SET, _IMAGE, METHOD, NON_FINITE)
# Fields of a row that are its image's.
_COPIED = ("sample_id", "category_id", "category_name", "prompt")
# Libraries whose versions the pool's meta file notes.
_RECORDED = (
    "bsgal-mask", "numpy", "opencv-python-headless", "pillow", "onnxruntime", "torch",
    "transformers",
)  # fmt: skip


class Progress(Protocol):
    """Called after every image."""

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` images have their row, earlier runs' included."""


def build_pool(
    image_set_dir: str | Path,
    out_dir: str | Path,
    *,
    methods: Sequence[Segmenter],
    choose: Choice | None = None,
    filters: Sequence[Filter] = (AreaFilter(),),
    similarity: SimilarityRule | None = None,
    clean_up: CleanUp | None = None,
    edges: Edges | None = None,
    label_mask_threshold: int = 128,
    batch_size: int = 8,
    max_image_px: int = 64_000_000,
    licence: str | None = None,
    progress: Progress | None = None,
) -> PoolSummary:
    """Cut the object out of every image of an image set.

    Every row of the image set ends as exactly one row of the pool: kept, or dropped with a
    reason. A pool that an earlier run with the same settings left unfinished is continued; rows
    it dropped because of the image file, of its status in the image set or of a method's failure
    are tried again, and kept instances whose file is missing or damaged are made again.

    A method that raises on an image, or returns no mask of it, costs that image: it is dropped with
    the reason. `KeyboardInterrupt`, `SystemExit` and `MemoryError` pass through.

    Where the choice computes CLIP scores, an image below the bar is dropped at once; when all
    images have their row, those above the bar of their own category are kept after all.

    Args:
        image_set_dir: The image set; only rows whose status is `ok` are segmented.
        out_dir: The pool; made if missing.
        methods: One or more methods with different names. All are run on every image.
        choose: Which method's mask to take; None takes the first method's.
        filters: Rules for the label mask, in order; the first that objects names the reason.
        similarity: Comparison with real objects, for what passed the filters; None makes none.
        clean_up: Repairs of the chosen mask before the filters; None is `CleanUp()`.
        edges: What is done to edge pixels; None is `Edges()`.
        label_mask_threshold: The label mask is where alpha (0 to 255) is at least this.
        batch_size: Images in memory at a time and per call of a method.
        max_image_px: Larger images (width times height) are dropped without being decoded.
        licence: Of the images, for the pool's card; None leaves it to what drew them, if known.
        progress: Called after every image.

    Returns:
        The counts of the whole pool.

    Raises:
        ImageSetError: The image set cannot be read.
        PoolError: `out_dir` holds another pool, cannot be written, or another run writes to it.
        SegmentationError: A method failed on ten images in a row.
        ValueError: A setting is impossible.
    """
    names = [method.name for method in methods]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"`methods` must be one or more with different names, got {names}")
    if not 1 <= label_mask_threshold <= 255:
        raise ValueError(f"`label_mask_threshold` must lie in [1, 255], got {label_mask_threshold}")
    for argument, value in (("batch_size", batch_size), ("max_image_px", max_image_px)):
        if value < 1:
            raise ValueError(f"`{argument}` must be at least 1, got {value}")
    cutter = Cutter(
        methods=methods,
        choice=FixedChoice() if choose is None else choose,
        filters=filters,
        similarity=similarity,
        clean_up=CleanUp() if clean_up is None else clean_up,
        edges=Edges() if edges is None else edges,
        label_mask_threshold=label_mask_threshold,
    )
    cutter.choice.check(names)
    image_set = ImageSet.open(image_set_dir)
    total = len(image_set.rows)
    writer = PoolWriter(
        Path(out_dir),
        config=cutter.config() | {"max_image_px": max_image_px},
        source={"image_set": image_set.meta_sha256},
        versions=_versions(),
    )
    with writer:
        runs = MethodRuns(methods)

        def cut(sources: Sequence[ImageRow]) -> Iterator[tuple[Row, bytes | None]]:
            for batch in _batches(sources, batch_size):
                yield from _cut_batch(image_set, batch, cutter, runs, max_image_px)

        damages = _damages(writer.root, image_set.rows, writer.rows)
        _log_damages(damages)
        todo = _open_sources(image_set.rows, writer.rows, damages)
        for done, (row, png) in enumerate(cut(todo), start=total - len(todo) + 1):
            writer.write(row, png)
            if progress is not None:
                progress(done, total)
        if cutter.choice.category_bar is not None:
            lost = _settle(writer, cutter.choice.category_bar)
            for row, png in cut([row for row in image_set.rows if row.sample_id in lost]):
                writer.write(row, png)
            _settle(writer, cutter.choice.category_bar)
        ids = (row.sample_id for row in image_set.rows)
        rows = [writer.rows[instance_id] for instance_id in ids]
        write_card(writer.root, image_set.root, rows, licence)
    return summarise_rows(rows)


def count_open(image_set_dir: str | Path, out_dir: str | Path) -> tuple[int, int]:
    """Return how many images a run of `build_pool` would work on, and how many there are.

    Raises:
        ImageSetError: The image set cannot be read.
        PoolError: `out_dir` holds something that is not a pool.
    """
    out_dir = Path(out_dir)
    rows = read_pool_rows(out_dir) if (out_dir / MANIFEST_NAME).exists() else {}
    sources = ImageSet.open(image_set_dir).rows
    return len(_open_sources(sources, rows, _damages(out_dir, sources, rows))), len(sources)


def _open_sources(
    sources: Sequence[ImageRow], rows: Mapping[str, Row], damages: Mapping[str, str]
) -> list[ImageRow]:
    """Return the images that still need their row, or might get a better one."""
    return [
        source
        for source in sources
        if source.status != "ok"
        or source.sample_id in damages
        or source.sample_id not in rows
        or _code(rows[source.sample_id]) in _RETRIED
    ]


def _damages(root: Path, sources: Sequence[ImageRow], rows: Mapping[str, Row]) -> dict[str, str]:
    """Return what is wrong with instances, by id: with their rows, or with kept ones' files."""
    damages = {}
    for source in sources:
        row = rows.get(source.sample_id)
        if row is None:
            continue
        differing = [key for key in _COPIED if row[key] != getattr(source, key)]
        damage = f"its {differing[0]} is not the image's" if differing else None
        if damage is None and row["status"] == "kept":
            damage = damage_of(root, row)
        if damage is not None:
            damages[source.sample_id] = damage
    return damages


def _log_damages(damages: Mapping[str, str]) -> None:
    if not damages:
        return
    what = "instance is" if len(damages) == 1 else "instances are"
    named = "; ".join(f"{key} ({why})" for key, why in itertools.islice(damages.items(), 3))
    rest = "; ..." if len(damages) > 3 else ""
    _LOGGER.warning("%d %s damaged and made again: %s%s", len(damages), what, named, rest)


def _cut_batch(
    image_set: ImageSet,
    sources: Sequence[ImageRow],
    cutter: Cutter,
    runs: MethodRuns,
    max_image_px: int,
) -> Iterator[tuple[Row, bytes | None]]:
    """Yield the pool row, and the file of a kept one, of each row of an image set, in order."""
    images: dict[str, Image] = {}
    reasons: dict[str, str] = {}
    for source in sources:
        try:
            if source.status == "ok":
                images[source.sample_id] = image_set.read(source, max_image_px=max_image_px)
            else:
                reasons[source.sample_id] = _status_reason(source)
        except ImageError as error:
            reasons[source.sample_id] = f"{_IMAGE}: {error}"
            _LOGGER.warning("dropped sample %s (%s): %s", source.sample_id, source.file, error)
    category_names = {source.sample_id: source.category_name for source in sources}
    masks, failures = runs.segment(images, category_names)
    for sample_id, reason in failures.items():
        _LOGGER.warning("dropped sample %s: %s", sample_id, reason)
    reasons |= failures
    segmented = [
        Segmented(
            source=source,
            image=without_alpha(images[source.sample_id]),
            masks=masks[source.sample_id],
        )
        for source in sources
        if source.sample_id not in reasons
    ]
    results = iter(cutter.cut(segmented))
    for source in sources:
        if source.sample_id in reasons:
            yield cutter.dropped(source, reasons[source.sample_id]), None
        else:
            yield next(results)


def _settle(writer: PoolWriter, bar: CategoryBar) -> list[str]:
    """Keep the images below the CLIP bar that reach the lower one of their own category.

    A category's best score can only rise when images are added, so what was once decided, either
    way, stays. The files of images that are dropped for good are removed.

    Returns:
        The ids of those that should be kept and whose file is not whole: they must be cut again.
    """
    by_category: dict[int, list[Row]] = defaultdict(list)
    for row in writer.rows.values():
        is_waiting = row["status"] == "dropped" and _code(row) == CLIP_SCORE
        if row["clip_score"] is not None and (is_waiting or row["status"] == "kept"):
            by_category[row["category_id"]].append(row)
    lost = []
    for rows in by_category.values():
        least = bar.of_category(max(row["clip_score"] for row in rows))
        for row in rows:
            if row["status"] == "kept":
                continue
            if row["clip_score"] < least:
                writer.remove_file(row)
            elif not writer.keep_after_all(row):
                lost.append(row["instance_id"])
    return lost


def _code(row: Row) -> str:
    return str(row["reason"]).partition(":")[0]


def _status_reason(source: ImageRow) -> str:
    detail = f"; {source.reason}" if source.reason else ""
    return f"{_IMAGE_SET}: status {source.status}{detail}"


def _batches(rows: Sequence[ImageRow], size: int) -> Iterator[list[ImageRow]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
