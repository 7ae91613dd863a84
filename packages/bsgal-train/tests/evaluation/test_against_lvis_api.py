"""The reference implementation of LVIS's metrics is the judge."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsgal_train.evaluation import LvisResult, evaluate_lvis

pytest.importorskip("lvis", reason="the reference implementation is not installed")

SHARED = Path(__file__).parents[4] / "../shared/data"
# Both sides average the same numbers, but not in the same order.
TOLERANCE = 1e-12

# lvis logs with a deprecated method.
pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")


def reference(
    path: Path, predictions: list[dict[str, Any]], iou_type: str, max_dets: int = 300
) -> dict[str, float]:
    from lvis import LVIS, LVISEval, LVISResults

    own = copy.deepcopy(predictions)
    if iou_type == "segm":
        # With a box it would take sizes from the box.
        for prediction in own:
            del prediction["bbox"]
    truth = LVIS(str(path))
    evaluation = LVISEval(truth, LVISResults(truth, own, max_dets=max_dets), iou_type)
    evaluation.run()
    return {name.partition("@")[0].lower(): float(v) for name, v in evaluation.results.items()}


def assert_equal_to_reference(
    result: LvisResult, path: Path, predictions: list[dict[str, Any]], max_dets: int = 300
) -> None:
    for iou_type, metrics in result.metrics.items():
        for name, expected in reference(path, predictions, iou_type, max_dets).items():
            actual = getattr(metrics, name)
            assert (-1 if actual is None else actual) == pytest.approx(expected, abs=TOLERANCE), (
                iou_type,
                name,
            )


@pytest.fixture(autouse=True)
def _numpy_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """lvis 0.5.3 uses an alias that NumPy has removed."""
    monkeypatch.setattr(np, "float", float, raising=False)


@pytest.mark.parametrize("seed", range(6))
def test_random_small_sets_agree(
    seed: int,
    tmp_path: Path,
    make_document: Callable[..., Any],
    make_predictions: Callable[..., Any],
) -> None:
    document = make_document(seed)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    predictions = make_predictions(document, seed)
    assert_equal_to_reference(evaluate_lvis(path, predictions), path, predictions)


def test_limit_per_image_agrees(
    tmp_path: Path, document: dict[str, Any], predictions: list[dict[str, Any]]
) -> None:
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = evaluate_lvis(path, predictions, max_detections=5)
    assert result.n_over_limit > 0
    assert_equal_to_reference(result, path, predictions, max_dets=5)


@pytest.mark.parametrize("name", ["lvis_val_100.json", "coco-mini/lvis_val.json"])
def test_real_annotations_agree(name: str, make_predictions: Callable[..., Any]) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    predictions = make_predictions(json.loads(path.read_text(encoding="utf-8")), 0)
    assert_equal_to_reference(evaluate_lvis(path, predictions), path, predictions)
