"""Write an augmented data set: images with pastes and an LVIS v1 file that describes them.

Layout of the output folder, for any framework that reads LVIS:

    meta.json        schema, settings, hashes of what went in
    manifest.jsonl   one row per augmented image with its hash, appended when its file exists
    images/          the images
    annotations.json LVIS v1, written last

A run that was stopped goes on where its manifest ends, and makes again what is missing or damaged.
Each image draws from its own generator, seeded by (seed, copy, image id), so the result does not
depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from bsgal_paste._apply import PasteResult
from bsgal_paste._composed_folder import opened_folder, sealed, whole_rows
from bsgal_paste._composed_lvis import Job, composed_annotations
from bsgal_paste._copy_paste import CopyPaste, sample_rng
from bsgal_paste._lvis import Lvis, encode_mask, read_annotated_image
from bsgal_paste._manifest import write_atomically
from bsgal_paste._polygons import mask_to_polygons
from bsgal_paste.errors import AnnotationError

COMPOSED_SCHEMA = "bsgal.composed/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeConfig:
    """Hold the settings of an augmented data set that are not those of pasting itself."""

    copies_per_image: int = 1
    """Augmented versions of each image."""
    seed: int = 0
    """Seed of everything random."""
    image_format: Literal["jpg", "png"] = "jpg"
    """File format of the images; png keeps every pixel."""
    jpeg_quality: int = 95
    """Quality of jpg files, 1 to 100."""
    segmentation: Literal["polygon", "rle"] = "polygon"
    """How masks are written; readers of LVIS expect polygons."""

    def __post_init__(self) -> None:
        if self.copies_per_image < 1:
            raise ValueError(f"`copies_per_image` must be positive, got {self.copies_per_image}")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}")
        if self.image_format not in ("jpg", "png"):
            raise ValueError(f"`image_format` must be 'jpg' or 'png', got {self.image_format!r}")
        if self.segmentation not in ("polygon", "rle"):
            raise ValueError(
                f"`segmentation` must be 'polygon' or 'rle', got {self.segmentation!r}"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"`jpeg_quality` must be 1 to 100, got {self.jpeg_quality}")


@dataclass(frozen=True, slots=True)
class ComposeSummary:
    """Count what an augmented data set holds.

    Attributes:
        n_images: Augmented images.
        n_pasted: Pasted instances in them.
        n_removed: Real instances that pastes hid.
        n_without_pixel: Annotations whose mask or box has no pixel in the image; they are left out.
        failed: Message per image that could not be read; they are left out.
        corrupt_instances: Pool instances that could not be read, each once.
    """

    n_images: int
    n_pasted: int
    n_removed: int
    n_without_pixel: int
    failed: tuple[str, ...]
    corrupt_instances: tuple[str, ...]


def compose(
    lvis: Lvis,
    image_root: str | Path,
    paste: CopyPaste,
    out_dir: str | Path,
    *,
    config: ComposeConfig,
    recipe: Mapping[str, Any],
    n_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ComposeSummary:
    """Write an augmented data set, going on with what is in `out_dir` already.

    Args:
        lvis: The annotations.
        image_root: Folder of their images.
        paste: What to paste and how.
        out_dir: Output folder.
        config: Settings.
        recipe: Settings of `paste` as plain values, for the record and to refuse to mix two runs.
        n_workers: Processes; 1 works in this one.
        progress: Called with the number of images done and in all.

    Raises:
        ValueError: `out_dir` holds something else, or the output of other settings.
        CorruptInstanceError: A pool instance is unreadable and `paste` does not skip those.
    """
    if n_workers < 1:
        raise ValueError(f"`n_workers` must be positive, got {n_workers}")
    root = Path(out_dir)
    grouped = lvis.annotations_by_image()
    jobs = [
        Job(copy, image, grouped[image["id"]])
        for copy in range(config.copies_per_image)
        for image in lvis.images
    ]
    work = _Worker(paste, Path(image_root), root, config, lvis.boxes_only)
    with opened_folder(root, _meta(lvis, paste, config, recipe)) as appender:
        rows = whole_rows(root, [job.name for job in jobs])
        open_jobs = [job for job in jobs if job.name not in rows]
        for row in _in_order(work, open_jobs, n_workers):
            appender.append(sealed(row))
            rows[row["name"]] = row
            if progress is not None:
                progress(len(rows), len(jobs))
        ordered = [rows[job.name] for job in jobs]
        annotations = composed_annotations(lvis, jobs, ordered)
        write_atomically(root / "annotations.json", json.dumps(annotations).encode())
    done = [row for row in ordered if row["status"] == "ok"]
    return ComposeSummary(
        n_images=len(done),
        n_pasted=sum(
            entry["instance_id"] is not None for row in done for entry in row["instances"]
        ),
        n_removed=sum(row["n_real_removed"] for row in done),
        n_without_pixel=sum(row["n_without_pixel"] for row in done),
        failed=tuple(row["reason"] for row in ordered if row["status"] == "failed"),
        corrupt_instances=tuple(sorted({name for row in done for name in row["corrupt"]})),
    )


@dataclass(frozen=True, slots=True)
class _Worker:
    """Paste into one image and write it."""

    paste: CopyPaste
    image_root: Path
    out_root: Path
    config: ComposeConfig
    boxes_only: bool

    def __call__(self, job: Job) -> dict[str, Any]:
        row: dict[str, Any] = {"name": job.name, "copy": job.copy, "image_id": job.image["id"]}
        try:
            target, used = read_annotated_image(
                job.image, job.annotations, self.image_root, boxes_only=self.boxes_only
            )
        except (AnnotationError, FileNotFoundError) as error:
            return row | {"status": "failed", "reason": str(error), "file": None}
        rng = sample_rng(self.config.seed, job.copy, int(job.image["id"]))
        result = self.paste(target, rng)
        file = f"{job.name}.{self.config.image_format}"
        content = self._encode(result)
        write_atomically(self.out_root / "images" / file, content)
        return row | {
            "status": "ok",
            "reason": None,
            "file": file,
            "sha256": hashlib.sha256(content).hexdigest(),
            "n_pasted": result.n_pasted,
            "n_real_removed": sum(gone.source_index >= 0 for gone in result.removed),
            "n_without_pixel": len(job.annotations) - len(used),
            "corrupt": [gone.instance_id for gone in result.removed if gone.reason == "corrupt"],
            "instances": self._instances(result, [job.annotations[index] for index in used]),
        }

    def _encode(self, result: PasteResult) -> bytes:
        content = io.BytesIO()
        image = Image.fromarray(result.image)
        if self.config.image_format == "jpg":
            image.save(content, "JPEG", quality=self.config.jpeg_quality, subsampling=0)
        else:
            image.save(content, "PNG", compress_level=3)
        return content.getvalue()

    def _instances(
        self, result: PasteResult, annotations: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        entries = []
        for i, source in enumerate(result.source_index.tolist()):
            left, top, right, bottom = result.boxes_xyxy[i].tolist()
            real = annotations[source] if source >= 0 else None
            entry = {
                "category_id": int(result.category_ids[i]),
                "bbox": [left, top, right - left, bottom - top],
                "area": int(result.areas[i]),
                "iscrowd": 0 if real is None else int(real.get("iscrowd", 0)),
                "origin": result.origins[i],
                "instance_id": result.instance_ids[i],
                "source_annotation_id": None if real is None else real["id"],
                "visible_frac": round(float(result.visible_frac[i]), 4),
            }
            if not self.boxes_only:
                as_polygons = self.config.segmentation == "polygon"
                write = mask_to_polygons if as_polygons else encode_mask
                entry["segmentation"] = write(result.masks[i])
            entries.append(entry)
        return entries


def _in_order(work: _Worker, jobs: Sequence[Job], n_workers: int) -> Iterator[dict[str, Any]]:
    if n_workers == 1:
        yield from map(work, jobs)
        return
    # Not forked: OpenCV's threads do not survive a fork, and a child that waits for one hangs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=_start_worker, initargs=(work,)
    ) as executor:
        try:
            yield from _windowed(executor, jobs, 4 * n_workers)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _windowed(executor: Executor, jobs: Sequence[Job], n_ahead: int) -> Iterator[dict[str, Any]]:
    """Keep a bounded number of jobs in flight, so that memory does not grow with the data set."""
    pending: deque[Future[dict[str, Any]]] = deque()
    for job in jobs:
        pending.append(executor.submit(_run_in_worker, job))
        if len(pending) >= n_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


_worker: _Worker | None = None


def _start_worker(worker: _Worker) -> None:
    # The pool's index is large: it reaches each process once, not with every job.
    global _worker
    _worker = worker
    cv2.setNumThreads(1)
    # Ctrl-C reaches every process; the parent is the one that answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End a worker whose parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(job: Job) -> dict[str, Any]:
    assert _worker is not None
    return _worker(job)


def _meta(
    lvis: Lvis, paste: CopyPaste, config: ComposeConfig, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    card = paste.pool.card()
    return {
        "schema": COMPOSED_SCHEMA,
        "config": {**asdict(config), "paste": dict(recipe)},
        "versions": {"bsgal-paste": version("bsgal-paste"), "numpy": np.__version__},
        "source": {
            "annotations": lvis.sha256(),
            "pool": card.manifest_sha256,
        },
    }
