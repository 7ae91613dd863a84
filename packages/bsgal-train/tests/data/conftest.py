from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from bsgal_paste import CategoryBalancedSampler, CopyPaste, InstancePool, UniformScale
from bsgal_train.annotations import LvisAnnotations

HEIGHT, WIDTH = 48, 64
CATEGORY_IDS = (3, 11, 42)


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def pytest_configure(config: pytest.Config) -> None:
    for exception in (
        # pycocotools 2.0.11 decodes with a signature of __array__ that NumPy 2 deprecates.
        "ignore:__array__ implementation:DeprecationWarning",
        # Python 3.12 warns when loader processes are forked beside PyTorch's threads.
        "ignore:This process .* is multi-threaded:DeprecationWarning",
    ):
        config.addinivalue_line("filterwarnings", exception)


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., LvisAnnotations]:
    """Draw images with coloured rectangles; each is given as (category_id, left, top, w, h)."""

    def write(
        root: Path, scenes: list[list[tuple[int, int, int, int, int]]], *, as_rle: bool = False
    ) -> LvisAnnotations:
        rng = np.random.default_rng(0)
        images, annotations = [], []
        for image_id, objects in enumerate(scenes, start=1):
            pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            for category_id, x, y, w, h in objects:
                pixels[y : y + h, x : x + w] = (200, category_id, 100)
                mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
                mask[y : y + h, x : x + w] = True
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "segmentation": encode(mask) if as_rle else [polygon],
                    }
                )
            Image.fromarray(pixels).save(root / f"{image_id}.png")
            images.append(
                {
                    "id": image_id,
                    "file_name": f"{image_id}.png",
                    "height": HEIGHT,
                    "width": WIDTH,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
            )
        document = {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": i, "name": f"thing {i}", "frequency": f}
                for i, f in zip(CATEGORY_IDS, "rcf", strict=True)
            ],
        }
        path = root / "lvis.json"
        path.write_text(json.dumps(document))
        return LvisAnnotations.load(path, root)

    return write


@pytest.fixture(scope="session")
def annotations(
    tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable[..., LvisAnnotations]
) -> LvisAnnotations:
    """Give six images: category 42 in all but the last, 11 in one, 3 in none; the last is empty."""
    scenes = [[(42, 4 + i, 6, 20, 15), (42, 30, 20 + i, 16, 12)] for i in range(5)]
    scenes[2].append((11, 2, 30, 10, 10))
    return write_dataset(tmp_path_factory.mktemp("six"), [*scenes, []])


@pytest.fixture(scope="session")
def pool() -> InstancePool:
    """Give discs of the categories 3 and 42."""
    rows, columns = np.mgrid[:32, :32]
    disc = ((rows - 15.5) ** 2 + (columns - 15.5) ** 2 < 15**2) * np.uint8(255)
    rgba = np.dstack([np.full((32, 32, 3), 250, dtype=np.uint8), disc])
    return InstancePool.from_arrays([rgba] * 3, [3, 42, 42], instance_ids=["a", "b", "c"])


@pytest.fixture(scope="session")
def copy_paste(pool: InstancePool) -> CopyPaste:
    """Paste one to three discs."""
    sampler = CategoryBalancedSampler(pool, count_range=(1, 4))
    return CopyPaste(pool, sampler, UniformScale(scale_range=(0.2, 0.4)))
