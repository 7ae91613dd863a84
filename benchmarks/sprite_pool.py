"""Instance pools for benchmarks: drawings of the built-in categories, and planted defects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_train.builtin_dataset.appearance import render_object, sample_appearance
from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.sprites import load_sprites

DEFECTS = ("wrong_category", "broken_mask", "noise")
_SIDE_PX = 96.0
_LABEL_ALPHA = 128

Rgba = NDArray[np.uint8]


def write_sprite_pool(folder: Path, per_category: int, seed: int = 0) -> Path:
    """Write a pool of the built-in drawings, each in a random appearance; or find it there."""
    if (folder / "meta.json").is_file():
        return folder
    rng = np.random.default_rng(seed)
    rows = []
    for category_id, drawings in load_sprites().items():
        for k in range(per_category):
            drawing = drawings[int(rng.integers(len(drawings)))]
            rgba = render_object(drawing, sample_appearance(rng), _SIDE_PX)
            rows.append(_write(folder, f"{category_id}-{k:04d}", category_id, rgba))
    _finish(folder, rows)
    return folder


def plant_defects(pool: Path, folder: Path, share: float, seed: int = 0) -> Path:
    """Copy a pool with some instances spoilt; or find the copy there.

    `planted.json` names the defect of every spoilt instance: of another category
    (`wrong_category`), with a mask that has lost half of the object and gained a block beside it
    (`broken_mask`), or with noise in the place of the object (`noise`).

    Args:
        pool: the pool to copy, of built-in categories.
        folder: the copy.
        share: share of the instances that each kind of defect hits.
        seed: of everything random.
    """
    if (folder / "meta.json").is_file():
        return folder
    rng = np.random.default_rng(seed)
    ids = [category.category_id for category in BUILTIN_CATEGORIES]
    spoil: dict[str, Callable[[Rgba, np.random.Generator], Rgba]] = {
        "broken_mask": _with_broken_mask,
        "noise": _with_noise,
    }
    rows, planted = [], {}
    for line in (pool / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["status"] != "kept":
            continue
        image = cv2.imread(str(pool / row["file"]), cv2.IMREAD_UNCHANGED)
        rgba = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
        kind = int(rng.random() / share)
        defect = DEFECTS[kind] if kind < len(DEFECTS) else None
        category_id = row["category_id"]
        if defect == "wrong_category":
            category_id = int(rng.choice([one for one in ids if one != category_id]))
        elif defect is not None:
            rgba = spoil[defect](rgba, rng)
        if defect is not None:
            planted[row["instance_id"]] = defect
        rows.append(_write(folder, row["instance_id"], category_id, rgba))
    (folder / "planted.json").write_text(json.dumps(planted), encoding="utf-8")
    _finish(folder, rows)
    return folder


def _with_broken_mask(rgba: Rgba, rng: np.random.Generator) -> Rgba:
    """Lose one half of the object, and take a block of plain background in on the other side."""
    height, width = rgba.shape[:2]
    broken = np.full((height, width + width // 2, 4), 0, dtype=np.uint8)
    broken[:, :width] = rgba
    broken[:, : width // 2, 3] = 0
    broken[height // 4 : 3 * height // 4, width:] = (*rng.integers(60, 200, 3).tolist(), 255)
    return np.ascontiguousarray(broken[:, ::-1] if rng.random() < 0.5 else broken)


def _with_noise(rgba: Rgba, rng: np.random.Generator) -> Rgba:
    noisy = rgba.copy()
    noisy[..., :3] = rng.integers(0, 256, (*rgba.shape[:2], 3), dtype=np.uint8)
    return noisy


def _write(folder: Path, instance_id: str, category_id: int, rgba: Rgba) -> dict[str, Any]:
    file = f"instances/{category_id}/{instance_id}.png"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / file), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    name = next(one.name for one in BUILTIN_CATEGORIES if one.category_id == category_id)
    return {
        "instance_id": instance_id,
        "category_id": category_id,
        "category_name": name,
        "file": file,
        "label_mask_threshold": _LABEL_ALPHA,
        "status": "kept",
    }


def _finish(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps({"schema": "bsgal.instance_pool/1"}))
