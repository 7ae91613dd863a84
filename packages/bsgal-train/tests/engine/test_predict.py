from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import mask as coco_mask

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import build_test_loader
from bsgal_train.detector import build_detector
from bsgal_train.engine.predict import predict_each
from bsgal_train.recipe import Recipe


@pytest.fixture
def annotations(tiny_data: Path) -> LvisAnnotations:
    return LvisAnnotations.load(tiny_data / "val.json", tiny_data)


@pytest.fixture
def detector(tiny_recipe: Recipe) -> Any:
    torch.manual_seed(0)
    return build_detector(
        tiny_recipe.override("detector.score_threshold=0.0").detector, n_classes=3
    )


def predicted(
    detector: Any, loader: Any, progress: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    predict_each(detector, loader, [3, 5, 9], found.extend, progress=progress)
    return found


def test_predictions_are_lvis_results_in_the_original_image(
    detector: Any, annotations: LvisAnnotations
) -> None:
    done: list[int] = []
    loader = build_test_loader(annotations, image_px=96)

    predictions = predicted(detector, loader, progress=done.append)

    assert done == [1, 2, 3]
    assert {p["image_id"] for p in predictions} == {1, 2, 3}
    assert {p["category_id"] for p in predictions} <= {3, 5, 9}
    for one in predictions:
        x, y, width, height = one["bbox"]
        assert 0 <= x <= x + width <= 64 + 1e-4
        assert 0 <= y <= y + height <= 64 + 1e-4
        assert coco_mask.decode(one["segmentation"]).shape == (64, 64)


def test_prediction_leaves_the_detector_in_training(
    detector: Any, annotations: LvisAnnotations
) -> None:
    predicted(detector, build_test_loader(annotations))

    assert detector.training


def test_limits_of_the_recipe_hold(detector: Any, annotations: LvisAnnotations) -> None:
    predictions = predicted(detector, build_test_loader(annotations))

    for image_id in (1, 2, 3):
        assert sum(p["image_id"] == image_id for p in predictions) <= 10
