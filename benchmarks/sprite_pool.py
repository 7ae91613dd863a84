"""Instance pools for benchmarks: drawings of the built-in categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_train.builtin_dataset.appearance import render_object, sample_appearance
from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.sprites import load_sprites

_SIDE_PX = 96.0
_LABEL_ALPHA = 128

Rgba = NDArray[np.uint8]


def write_sprite_pool(folder: Path, per_category: int, seed: int = 0) -> Path:
    """Write a pool of the built-in drawings, each in a random appearance; or find it there."""
    if (folder / "meta.json").is_file():
        return folder
    rng = np.random.default_rng(seed)
    names = {one.category_id: one.name for one in BUILTIN_CATEGORIES}
    rows = []
    for category_id, drawings in load_sprites().items():
        for k in range(per_category):
            drawing = drawings[int(rng.integers(len(drawings)))]
            rgba = render_object(drawing, sample_appearance(rng), _SIDE_PX)
            instance_id = f"{category_id}-{k:04d}"
            rows.append(write_instance(folder, instance_id, category_id, names[category_id], rgba))
    finish_pool(folder, rows)
    return folder


def write_instance(
    folder: Path, instance_id: str, category_id: int, category_name: str, rgba: Rgba
) -> dict[str, Any]:
    """Write an instance's picture into a pool, and return its row of the manifest."""
    file = f"instances/{category_id}/{instance_id}.png"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / file), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    return {
        "instance_id": instance_id,
        "category_id": category_id,
        "category_name": category_name,
        "file": file,
        "label_mask_threshold": _LABEL_ALPHA,
        "status": "kept",
    }


def finish_pool(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write a pool's manifest, and last what says that it is whole."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps({"schema": "bsgal.instance_pool/1"}))
