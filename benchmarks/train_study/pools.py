"""Pools of the study: made, spoilt on purpose, filtered or freed of what is spoilt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from train_study.kinds import SEEDS, Role
from train_study.plant import plant_defects

PoolKind = Literal["drawn", "generated"]
"""The built-in drawings in random appearances, or instances of the built-in pipeline."""


def make_pool(folder: Path, kind: PoolKind, per_category: int, role: Role = "development") -> Path:
    """Make the spoilt pool, or find it."""
    from sprite_pool import write_sprite_pool

    seed = SEEDS[role]
    if kind == "drawn":
        clean = write_sprite_pool(folder / f"drawn-{seed}", per_category, seed)
    else:
        clean = generate_pool(folder, per_category, seed)
    return plant_defects(clean, folder / f"{kind}-{role}", role)


def generate_pool(folder: Path, per_category: int, seed: int) -> Path:
    """Generate and cut out instances with what ships with the packages."""
    from bsgal_generate import (
        TEMPLATES,
        GenerationPlan,
        SamplingConfig,
        generate,
        load_categories,
        load_pipeline,
    )
    from bsgal_mask import BorderSegmenter, build_pool

    pool = folder / f"generated-{seed}"
    if not (pool / "meta.json").is_file():
        plan = GenerationPlan(
            categories=tuple(load_categories(folder / "dataset/annotations/lvis_train.json")),
            images_per_category=per_category,
            templates=(TEMPLATES["single_noun"],),
            seed=seed,
        )
        images = folder / f"images-{seed}"
        config = SamplingConfig(num_inference_steps=15)
        generate(plan, load_pipeline("tiny"), images, config=config)
        build_pool(images, pool, methods=(BorderSegmenter(),))
    return pool


def filter_pool(pool: Path, folder: Path) -> Path:
    """Copy a pool without the instances whose mask a salient-object model agrees with least.

    Each instance is shown to the model on white; what counts is the overlap of its mask with the
    pool's. Every category loses the share that is spoilt of the pool: thin objects agree less than
    round ones, so one threshold for all would empty their categories.
    """
    import cv2
    import numpy as np

    from bsgal_mask import U2NetSegmenter

    if (folder / "meta.json").is_file():
        return folder
    text = (pool / "manifest.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()]
    segmenter = U2NetSegmenter()
    overlaps = []
    for entry in entries:
        rgba = cv2.cvtColor(
            cv2.imread(str(pool / entry["file"]), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA
        )
        margin = max(rgba.shape[:2]) // 4
        rgba = np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))
        alpha = rgba[..., 3:].astype(np.float32) / 255
        image = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        (soft,) = segmenter.segment([image], [entry["category_name"]])
        found, own = np.asarray(soft) >= 0.5, alpha[..., 0] >= 0.5
        overlaps.append((found & own).sum() / max((found | own).sum(), 1))
    planted = json.loads((pool / "planted.json").read_text(encoding="utf-8"))
    of_category: dict[int, list[int]] = {}
    for k in np.argsort(overlaps).tolist():
        of_category.setdefault(entries[k]["category_id"], []).append(k)
    share = len(planted) / len(entries)
    unlike = {
        entries[k]["instance_id"]
        for members in of_category.values()
        for k in members[: round(share * len(members))]
    }
    return copy_pool(pool, folder, lambda entry: entry["instance_id"] not in unlike)


def copy_pool(pool: Path, folder: Path, keep: Callable[[dict[str, Any]], bool]) -> Path:
    """Copy the instances of a pool that `keep` is true of; or find the copy there."""
    if (folder / "meta.json").is_file():
        return folder
    kept = []
    for line in (pool / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if keep(entry):
            kept.append(line + "\n")
            (folder / entry["file"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pool / entry["file"], folder / entry["file"])
    (folder / "manifest.jsonl").write_text("".join(kept), encoding="utf-8")
    shutil.copyfile(pool / "meta.json", folder / "meta.json")
    return folder
