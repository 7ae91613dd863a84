"""Spoil a known part of a pool on purpose."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sprite_pool import finish_pool, write_instance

from train_study.kinds import KINDS, PLANTED_SHARE, SEEDS, Role, kinds_of
from train_study.spoil import Ingredients, Rgba

__all__ = ["plant_defects", "read_instance", "spoilt"]

Row = dict[str, Any]

_THUMBNAIL_PX = 16


def plant_defects(pool: Path, folder: Path, role: Role, share: float = PLANTED_SHARE) -> Path:
    """Copy a pool with a share of every category spoilt; or find the copy there.

    The copy's `planted.json` names the kind of every spoilt instance by its id. What is done to an
    instance depends on the role's seed, its id and the pool's good instances only.

    Args:
        pool: the pool to copy, of two categories at least.
        folder: the copy.
        role: whose kinds are planted, in equal parts.
        share: of every category's instances.
    """
    if (folder / "meta.json").is_file():
        return folder
    lines = (pool / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["status"] == "kept"]
    if len({row["category_id"] for row in rows}) < 2:
        raise SystemExit(f"{pool} has instances of one category only: nothing to mistake it for")
    planted = _chosen(rows, kinds_of(role), share, SEEDS[role])
    good = [row for row in rows if row["instance_id"] not in planted]
    likeness = _most_similar(pool, good)
    names = {row["category_id"]: row["category_name"] for row in rows}
    strangers = {one: [row for row in good if row["category_id"] != one] for one in names}
    written = []
    for row in rows:
        kind = planted.get(row["instance_id"])
        rgba, category_id = read_instance(pool, row), row["category_id"]
        if kind is not None:
            rng = np.random.default_rng([SEEDS[role], zlib.crc32(row["instance_id"].encode())])
            others = strangers[category_id]
            stranger = read_instance(pool, others[int(rng.integers(len(others)))])
            rgba = spoilt(rgba, kind, rng, stranger)
            if KINDS[kind].label == "random":
                category_id = int(rng.choice([one for one in names if one != category_id]))
            elif KINDS[kind].label == "similar":
                category_id = likeness[category_id]
        new = write_instance(folder, row["instance_id"], category_id, names[category_id], rgba)
        written.append(new)
    (folder / "planted.json").write_text(json.dumps(planted, indent=0), encoding="utf-8")
    finish_pool(folder, written)
    return folder


def spoilt(rgba: Rgba, kind: str, rng: np.random.Generator, stranger: Rgba) -> Rgba:
    """Return an instance with one kind of defect; its label is not told here.

    Args:
        rgba: the good instance.
        kind: of `KINDS`.
        rng: of everything random.
        stranger: a good instance of another category.
    """
    change = KINDS[kind].change
    if change is None:
        return rgba
    from bsgal_train.builtin_dataset.backgrounds import sample_background

    def photograph(side_px: int) -> NDArray[np.uint8]:
        return sample_background(rng, _photographs(), "train", side_px)

    return change(rgba, Ingredients(rng, stranger, photograph))


def read_instance(pool: Path, row: Row) -> Rgba:
    """Return an instance of a pool as RGBA with straight alpha."""
    image = cv2.imread(str(pool / row["file"]), cv2.IMREAD_UNCHANGED)
    rgba: Rgba = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    return rgba


def _chosen(rows: Sequence[Row], kinds: Sequence[str], share: float, seed: int) -> dict[str, str]:
    """Return the kind of every instance to spoil, by instance id."""
    by_category: dict[int, list[str]] = {}
    for row in rows:
        by_category.setdefault(row["category_id"], []).append(row["instance_id"])
    rng = np.random.default_rng(seed)
    planted: dict[str, str] = {}
    for ids in by_category.values():
        hit = rng.permutation(len(ids))[: round(share * len(ids))]
        # The kinds go on where the category before stopped, so that all are equally many.
        planted |= {ids[i]: kinds[(len(planted) + n) % len(kinds)] for n, i in enumerate(hit)}
    return planted


def _most_similar(pool: Path, rows: Sequence[Row]) -> dict[int, int]:
    """Return for each category the other one whose mean picture is most like its own."""
    pictures: dict[int, list[NDArray[np.float32]]] = {}
    for row in rows:
        rgba = read_instance(pool, row).astype(np.float32) / 255
        rgba[..., :3] *= rgba[..., 3:]
        size_wh = (_THUMBNAIL_PX, _THUMBNAIL_PX)
        small = cv2.resize(rgba, size_wh, interpolation=cv2.INTER_AREA)
        pictures.setdefault(row["category_id"], []).append(small)
    means = {one: np.mean(own, axis=0) for one, own in pictures.items()}

    def distance(one: int, other: int) -> float:
        return float(((means[one] - means[other]) ** 2).sum())

    return {
        one: min((other for other in means if other != one), key=lambda other: distance(one, other))
        for one in means
    }


@cache
def _photographs() -> Any:
    from bsgal_train.builtin_dataset.backgrounds import load_photographs

    return load_photographs()
