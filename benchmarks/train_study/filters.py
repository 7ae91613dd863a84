"""Pools without what a model that knows nothing of the training doubts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_study.plant import read_instance

__all__ = ["clip_scores", "copy_pool", "read_rows", "u2netp_scores", "without_worst"]

Row = dict[str, Any]
Scores = Callable[[Path, Sequence[Row]], list[float]]


def without_worst(pool: Path, folder: Path, scores: Scores, share: float) -> Path:
    """Copy a pool without the share of every category that scores lowest; or find the copy there.

    Every category loses as much: thin objects agree less than round ones and some names fit their
    pictures better than others, so one threshold for all would empty categories.
    """
    if (folder / "meta.json").is_file():
        return folder
    rows = read_rows(pool)
    values = scores(pool, rows)
    of_category: dict[int, list[int]] = {}
    for k in np.argsort(values, kind="stable").tolist():
        of_category.setdefault(rows[k]["category_id"], []).append(k)
    worst = {
        rows[k]["instance_id"]
        for members in of_category.values()
        for k in members[: round(share * len(members))]
    }
    return copy_pool(pool, folder, lambda row: row["instance_id"] not in worst)


def u2netp_scores(pool: Path, rows: Sequence[Row]) -> list[float]:
    """Return how far a salient-object model's mask, the instance on white, overlaps the pool's."""
    from bsgal_mask import U2NetSegmenter

    segmenter = U2NetSegmenter()
    overlaps = []
    for row, (image, own) in zip(rows, _on_white(pool, rows), strict=True):
        (soft,) = segmenter.segment([image], [row["category_name"]])
        found = np.asarray(soft) >= 0.5
        overlaps.append(float((found & own).sum() / max((found | own).sum(), 1)))
    return overlaps


def clip_scores(weights: str) -> Scores:
    """Return a function that scores how well CLIP finds an instance, on white, fits its name."""

    def scores(pool: Path, rows: Sequence[Row]) -> list[float]:
        from bsgal_mask import Clip

        clip = Clip(weights)
        features = clip.image_features(
            (image for image, _ in _on_white(pool, rows)), margin_value=255
        )
        texts = (clip.text_features(_caption(row)) for row in rows)
        return [float(one @ text) for one, text in zip(features, texts, strict=True)]

    return scores


def copy_pool(pool: Path, folder: Path, keep: Callable[[Row], bool]) -> Path:
    """Copy the instances of a pool that `keep` is true of; or find the copy there."""
    if (folder / "meta.json").is_file():
        return folder
    kept = [row for row in read_rows(pool) if keep(row)]
    for row in kept:
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pool / row["file"], folder / row["file"])
    text = "".join(json.dumps(row) + "\n" for row in kept)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    shutil.copyfile(pool / "meta.json", folder / "meta.json")
    return folder


def read_rows(pool: Path) -> list[Row]:
    """Return the rows of a pool's instances that can be drawn."""
    text = (pool / "manifest.jsonl").read_text(encoding="utf-8")
    return [row for row in map(json.loads, text.splitlines()) if row["status"] == "kept"]


def _caption(row: Row) -> str:
    name = row["category_name"].split("_(")[0].replace("_", " ")
    return f"a photo of a single {name}"


def _on_white(
    pool: Path, rows: Sequence[Row]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Yield each instance on white with a margin, and its mask."""
    for row in rows:
        rgba = read_instance(pool, row)
        margin = max(rgba.shape[:2]) // 4
        rgba = np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))
        alpha = rgba[..., 3:].astype(np.float32) / 255
        image = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        yield image, alpha[..., 0] >= 0.5
