"""Small valid inputs of every reader, made once by the packages themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import bsgal_paste
import bsgal_paste._index_file
from bsgal_generate import ImageRow
from bsgal_generate._image_set import ImageSetWriter
from bsgal_generate._images import encode_png
from bsgal_mask import cli as mask_cli

NAMES = {0: "apple", 3: "bus_(vehicle)"}
CATEGORIES = [
    {"id": number, "name": name, "synonyms": [name], "def": f"a kind of {name}", "frequency": "f"}
    for number, name in NAMES.items()
]
_SCHEDULER = {"class": "DDIMScheduler", "beta_end": 0.012, "trained_betas": None}


def make_all(root: Path) -> None:
    """Write every input below a folder."""
    make_image_set(root / "images")
    make_categories(root / "categories")
    make_pool(root / "images", root / "pool")
    make_annotations(root / "annotated")
    make_xpaste(root / "xpaste")


def disc(seed: int, side_px: int = 36) -> NDArray[np.uint8]:
    """Return a coloured disc on paper, uint8 RGB."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side_px, :side_px]
    inside = (rows - side_px / 2) ** 2 + (columns - side_px / 2) ** 2 < (side_px / 3.5) ** 2
    picture = np.full((side_px, side_px, 3), 235) + rng.integers(-2, 3, (side_px, side_px, 3))
    picture[inside] = rng.integers(20, 120, 3)
    return picture.astype(np.uint8)


def make_image_set(root: Path) -> None:
    """Write an image set of two categories."""
    plan = {
        "seed": 0,
        "images_per_category": 2,
        "negative_prompt": None,
        "categories": {
            str(number): {"name": name, "prompts": {"single": f"a photo of {name}"}}
            for number, name in NAMES.items()
        },
    }
    sampling = {
        "num_inference_steps": 2, "guidance_scale": 3.0, "height": None, "width": None,
        "max_redraws": 2, "blank_std": 1.0,
    }  # fmt: skip
    pipeline = {"class": "P", "dtype": "float32", "scheduler": _SCHEDULER}
    meta = {
        "config": {"plan": plan, "sampling": sampling, "pipeline": pipeline},
        "model": {"id": "m", "revision": None, "weight_hash": "sha256:0"},
        "versions": {"torch": "2"},
        "execution": {"batch_size": 8, "device": "cpu"},
    }
    with ImageSetWriter(root, meta) as writer:
        for number, name in NAMES.items():
            for index in range(2):
                writer.add(
                    ImageRow(
                        sample_id=f"{number}-single-{index:05d}", category_id=number,
                        category_name=name, prompt_id="single", prompt=f"a photo of {name}",
                        negative_prompt=None, seed=index, model="m", scheduler="DDIMScheduler",
                        num_inference_steps=2, guidance_scale=3.0, height=36, width=36, file=None,
                        sha256=None, status="ok", reason=None,
                    ),
                    encode_png(disc(10 * number + index)),
                )  # fmt: skip


def make_categories(root: Path) -> None:
    """Write a category file of each kind, and prompts."""
    (root / "prompts").mkdir(parents=True)
    (root / "lvis.json").write_text(json.dumps({"categories": CATEGORIES}, indent=1))
    (root / "list.json").write_text(json.dumps(CATEGORIES))
    (root / "names.txt").write_text("apple\nbus (vehicle)\n# comment\npear\n")
    (root / "prompts" / "0.txt").write_text("a red apple\nan apple on a table\n")
    (root / "prompts" / "3.txt").write_text("# vehicles\na yellow bus\n")


def make_pool(images: Path, root: Path) -> None:
    """Cut the pool out of the image set, and write the index that large pools have."""
    assert mask_cli.main(["run", str(images), "--out", str(root), "--quiet"]) == 0
    index_every_pool()
    bsgal_paste.InstancePool.open(root)
    assert (root / "manifest.index").is_file()


def index_every_pool() -> None:
    """Let pools of any size have an index on disk."""
    bsgal_paste._index_file.MIN_INDEXED_ROWS = 1


def make_annotations(root: Path) -> None:
    """Write photographs with annotations of every form."""
    (root / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, name in enumerate(("a.png", "b.jpg"), start=1):
        pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(root / "photos" / name)
        images.append(
            {
                "id": number, "width": 80, "height": 60, "file_name": name, "license": 1,
                "neg_category_ids": [], "not_exhaustive_category_ids": [3],
            }
        )  # fmt: skip
        for index, segmentation in enumerate(_segmentations(number)):
            annotations.append(
                {
                    "id": 10 * number + index, "image_id": number,
                    "category_id": [0, 3][index % 2], "bbox": [10, 10, 20, 20], "area": 400.0,
                    "iscrowd": 0, "segmentation": segmentation,
                }
            )  # fmt: skip
    document = {
        "info": {"description": "made up", "year": 2026},
        "licenses": [{"id": 1, "name": "none"}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (root / "lvis.json").write_text(json.dumps(document))


def _segmentations(number: int) -> list[Any]:
    polygon = [10, 10, 30, 10, 30.5, 30, 10, 30]
    mask = np.zeros((60, 80), bool)
    mask[10:30, 10:30] = True
    runs = bsgal_paste._lvis.encode_mask(mask)
    columns = [10 * 60 + 10] + [20, 40] * 19 + [20, 49 * 60 + 30 + 60]
    counts = {"size": [60, 80], "counts": [*columns[:-1], 60 * 80 - sum(columns[:-1])]}
    return [[polygon], [polygon, [40, 40, 50, 40, 50, 50]], runs if number == 1 else counts]


def make_xpaste(root: Path) -> None:
    """Write a pool in X-Paste's form: cut-outs, and a picture with its mask."""
    for name in ("0", "3"):
        (root / name).mkdir(parents=True)
        alpha = np.zeros((36, 36), np.uint8)
        alpha[8:28, 8:28] = 255
        for index in range(2):
            rgba = np.dstack([disc(100 + int(name) + index), alpha])
            Image.fromarray(rgba).save(root / name / f"{index}.png")
        Image.fromarray(disc(7)).save(root / name / "flat.png")
        Image.fromarray(alpha).save(root / name / "mask.png")
    listed = {
        "2": ["*3/0.png", "*3/1.png", "3/flat.png|3/mask.png"],
        "0": ["*0/0.png", "*0/1.png"],
    }
    (root / "index.json").write_text(json.dumps(listed))
