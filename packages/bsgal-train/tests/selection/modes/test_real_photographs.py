"""Every mode, a few steps long, on real photographs with instances cut out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.annotations.read_image import read_image
from bsgal_train.data.crop import CropWindow
from bsgal_train.data.masks import crop_masks
from bsgal_train.engine.run import train
from bsgal_train.recipe.library import load_recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

ROOT = Path(__file__).parents[6] / "shared" / "data" / "coco-mini"
MODES = ("none", "paste_all", "paste_random", "paper", "batch", "image", "instance", "oracle")

pytestmark = pytest.mark.skipif(not ROOT.exists(), reason=f"needs the photographs in {ROOT}")


@pytest.fixture(scope="module")
def photographs_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut the large objects out of the first photographs."""
    folder = tmp_path_factory.mktemp("real") / "pool"
    annotations = LvisAnnotations.load(ROOT / "lvis_train.json", ROOT / "images" / "train")
    rows: list[dict[str, Any]] = []
    for record in annotations.images[:12]:
        image_hw = (record.height, record.width)
        masks, left = crop_masks(record, CropWindow(image_hw, 0, 0, image_hw, flip=False))
        image = read_image(record)
        for mask, position in zip(masks, left, strict=True):
            ys, xs = np.nonzero(mask)
            if len(ys) < 2000:
                continue
            box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
            bgra = np.dstack([image[box][..., ::-1], 255 * mask[box].astype(np.uint8)])
            category = annotations.categories[record.instances[position].class_index]
            file = f"instances/{category.category_id}/{record.image_id}-{position}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / file), bgra)
            rows.append(
                {
                    "instance_id": f"{record.image_id}-{position}",
                    "category_id": category.category_id,
                    "category_name": category.name,
                    "file": file,
                    "label_mask_threshold": 128,
                    "status": "kept",
                }
            )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text(json.dumps({"schema": "bsgal.instance_pool/1"}))
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_trains_on_photographs(mode: str, photographs_pool: Path, tmp_path: Path) -> None:
    recipe = load_recipe("coco_mini").override(
        f"data.train_json={ROOT / 'lvis_train.json'}",
        f"data.image_root={ROOT / 'images' / 'train'}",
        f"paste.pool={photographs_pool}",
        f"selection.mode={mode}",
        "data.crop_px=128",
        "schedule.n_steps=2",
        "schedule.batch_size=2",
        "schedule.log_every=1",
    )

    train(recipe, tmp_path)

    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    judged = read_decisions(tmp_path / "decisions").num_rows
    assert (judged > 0) == (mode not in ("none", "paste_all"))
