"""A tiny data set, an instance pool for it, and a recipe that trains on them in seconds."""

from __future__ import annotations

import faulthandler
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import LabelledImage, RandomCrop, TrainingMapper
from bsgal_train.recipe import (
    CheckpointConfig,
    DataConfig,
    DetectorConfig,
    OptimizerConfig,
    PasteConfig,
    Recipe,
    ScheduleConfig,
    SelectionConfig,
)

torch.set_num_threads(1)
settings.register_profile("bsgal", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bsgal")

SIDE_PX = 64
# Of what a test runs in several processes: longer is a deadlock.
MOST_S = 120
CATEGORIES = {
    3: ("red_box", (220, 30, 30)),
    5: ("green_box", (30, 200, 30)),
    9: ("kite", (30, 30, 220)),
}


def write_annotations(folder: Path, split: str, n_images: int, seed: int) -> Path:
    """Write images with one box of each of two categories, and their LVIS file."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    for image_id in range(1, n_images + 1):
        image = rng.integers(90, 130, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        present = rng.choice(list(CATEGORIES), size=2, replace=False).tolist()
        for left, category_id in zip((4, 34), present, strict=True):
            top, side = int(rng.integers(2, 30)), int(rng.integers(18, 26))
            image[top : top + side, left : left + side] = CATEGORIES[category_id][1]
            right, bottom = left + side, top + side
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [left, top, side, side],
                    "area": side * side,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
        file_name = f"{split}/{image_id}.png"
        cv2.imwrite(str(folder / file_name), image[..., ::-1])
        images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "height": SIDE_PX,
                "width": SIDE_PX,
                "neg_category_ids": [i for i in CATEGORIES if i not in present],
                "not_exhaustive_category_ids": [],
            }
        )
    categories = [
        {"id": i, "name": name, "synonyms": [name], "frequency": "rcf"[k]}
        for k, (i, (name, _)) in enumerate(CATEGORIES.items())
    ]
    path = folder / f"{split}.json"
    path.write_text(
        json.dumps(
            {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        )
    )
    return path


def write_pool(folder: Path) -> Path:
    """Write two instances of each of two categories, with ids of their own."""
    rows = []
    for category_id, name in ((103, "Red box"), (105, "green_box (thing)")):
        colour = next(c for n, c in CATEGORIES.values() if n.split("_")[0] in name.lower())
        for k in range(2):
            file = f"instances/{category_id}/{category_id}-{k}.png"
            rgba = np.full((20 + 4 * k, 20, 4), 255, dtype=np.uint8)
            rgba[..., :3] = colour[::-1]
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / file), rgba)
            rows.append(
                {
                    "instance_id": f"{category_id}-{k}",
                    "category_id": category_id,
                    "category_name": name,
                    "file": file,
                    "label_mask_threshold": 128,
                    "status": "kept",
                }
            )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text(json.dumps({"schema": "bsgal.instance_pool/1"}))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep derived data out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.json, val.json, their images, and a pool."""
    folder = tmp_path_factory.mktemp("tiny")
    write_annotations(folder, "train", n_images=6, seed=0)
    write_annotations(folder, "val", n_images=3, seed=1)
    write_pool(folder / "pool")
    return folder


@pytest.fixture
def tiny_recipe(tiny_data: Path) -> Recipe:
    """Return a recipe of five steps in `paper` mode."""
    return Recipe(
        data=DataConfig(
            train_json=str(tiny_data / "train.json"),
            val_json=str(tiny_data / "val.json"),
            image_root=str(tiny_data),
            crop_px=SIDE_PX,
        ),
        detector=DetectorConfig(
            backbone_channels=(8, 8, 16, 16),
            fpn_channels=32,
            head_channels=32,
            n_mask_convs=1,
            box_features=32,
            rois_per_image=16,
            proposals_per_image=30,
            detections_per_image=10,
        ),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(n_steps=5, batch_size=2, warmup_steps=2, log_every=1),
        paste=PasteConfig(pool=str(tiny_data / "pool"), max_instances=2),
        selection=SelectionConfig(mode="paper"),
        checkpoint=CheckpointConfig(every=2, keep=3),
    )


@pytest.fixture
def tiny_inputs(tiny_data: Path) -> list[LabelledImage]:
    """Return two real training images."""
    annotations = LvisAnnotations.load(tiny_data / "train.json", tiny_data)
    mapper = TrainingMapper(annotations, RandomCrop(crop_px=SIDE_PX), seed=0)
    return [mapper(position, image_index=position).original for position in range(2)]


@pytest.fixture
def in_processes(tmp_path: Path) -> Callable[[int, Callable[[int], object]], list[int]]:
    """Return a function that runs `work(rank)` in n forks of a group and gives their exit codes.

    A process that waits too long says where, and ends.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")

    def run(n: int, work: Callable[[int], object]) -> list[int]:
        method = f"file://{tmp_path / 'store'}"
        children = []
        for rank in range(n):
            child = os.fork()
            if child:
                children.append(child)
                continue
            code = 1
            faulthandler.dump_traceback_later(MOST_S, exit=True, file=2)
            try:
                dist.init_process_group("gloo", init_method=method, rank=rank, world_size=n)
                work(rank)
                dist.destroy_process_group()
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return run
