from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.detector import build_detector
from bsgal_train.engine.validation import validate
from bsgal_train.evaluation import PredictionShards
from bsgal_train.recipe import Recipe

SHAPES_HW = ((64, 64), (40, 96), (96, 48), (64, 64), (33, 71))


@pytest.fixture(scope="module")
def many_shapes(tmp_path_factory: pytest.TempPathFactory) -> LvisAnnotations:
    """Five images of four shapes, each with one object."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, (height, width) in enumerate(SHAPES_HW, start=1):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        images.append(
            {
                "id": number,
                "file_name": f"{number}.png",
                "height": height,
                "width": width,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        )
        objects.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1 + number % 3,
                "bbox": [4, 4, 20, 20],
                "area": 400,
                "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]],
            }
        )
    categories = [{"id": i, "name": f"thing {i}", "frequency": "f"} for i in (1, 2, 3)]
    document = {"images": images, "annotations": objects, "categories": categories}
    path = folder / "val.json"
    path.write_text(json.dumps(document))
    return LvisAnnotations.load(path, folder)


@pytest.fixture(params=["mask_rcnn", "centernet2"])
def recipe(request: pytest.FixtureRequest, tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override(
        f"detector.architecture={request.param}", "detector.score_threshold=0.0"
    )


def predictions(folder: Path) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in range(1, 6)}
    for one in PredictionShards(folder).predictions():
        found[int(one["image_id"])].append(dict(one))
    return found


def test_an_image_gets_the_same_detections_whatever_the_number_of_processes(
    recipe: Recipe,
    many_shapes: LvisAnnotations,
    in_processes: Callable[[int, Callable[[int], object]], list[int]],
    tmp_path: Path,
) -> None:
    """Group normalisation would see the padding that larger neighbours bring."""
    assert recipe.detector.head_norm == "group"

    def work(folder: Path) -> None:
        torch.manual_seed(0)
        validate(build_detector(recipe.detector, 3), many_shapes, recipe, folder)

    work(tmp_path / "alone")
    assert in_processes(2, lambda rank: work(tmp_path / "shared")) == [0, 0]

    alone, shared = predictions(tmp_path / "alone"), predictions(tmp_path / "shared")
    assert all(alone.values())
    assert alone == shared
