"""The reference implementation of LVIS's metrics is the judge."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsgal_train.evaluation import FIXED_AP, LvisResult, evaluate_lvis

# One random set with the reference's numbers, so that they are checked without it too.
STORED = Path(__file__).parent / "reference_numbers.json"
SHARED = Path(__file__).parents[4] / "../shared/data"
# Both sides average the same numbers, but not in the same order.
TOLERANCE = 1e-12

# lvis logs with a deprecated method.
pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")


def reference(
    path: Path, predictions: list[dict[str, Any]], iou_type: str, max_dets: int = 300
) -> dict[str, float]:
    pytest.importorskip("lvis", reason="the reference implementation is not installed")
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


def assert_equal(result: LvisResult, iou_type: str, numbers: dict[str, float]) -> None:
    for name, expected in numbers.items():
        actual = getattr(result.metrics[iou_type], name)
        # The reference writes -1 where there is nothing to find.
        assert (-1 if actual is None else actual) == pytest.approx(expected, abs=TOLERANCE), (
            iou_type,
            name,
        )


def assert_equal_to_reference(
    result: LvisResult, path: Path, predictions: list[dict[str, Any]], max_dets: int = 300
) -> None:
    for iou_type in result.metrics:
        assert_equal(result, iou_type, reference(path, predictions, iou_type, max_dets))


@pytest.fixture(autouse=True)
def _numpy_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """lvis 0.5.3 uses an alias that NumPy has removed."""
    monkeypatch.setattr(np, "float", float, raising=False)


def test_stored_numbers_of_the_reference_are_met() -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    result = evaluate_lvis(stored["document"], stored["predictions"])
    for iou_type, numbers in stored["numbers"].items():
        assert min(numbers.values()) > 0, "every number is defined, so that every one is tested"
        assert_equal(result, iou_type, numbers)


def test_stored_numbers_are_the_reference_s(tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(stored["document"]), encoding="utf-8")
    for iou_type, numbers in stored["numbers"].items():
        assert reference(path, stored["predictions"], iou_type) == pytest.approx(numbers, abs=0)


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


@pytest.mark.parametrize("seed", range(8))
def test_crowds_with_equal_overlaps_and_scores_agree(
    seed: int, tmp_path: Path, make_crowd: Callable[..., Any]
) -> None:
    document, predictions = make_crowd(seed)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert_equal_to_reference(evaluate_lvis(path, predictions), path, predictions)


def test_limit_per_image_agrees(
    tmp_path: Path, document: dict[str, Any], predictions: list[dict[str, Any]]
) -> None:
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = evaluate_lvis(path, predictions, max_detections=5)
    assert result.n_over_limit > 0
    assert_equal_to_reference(result, path, predictions, max_dets=5)


def test_fixed_ap_agrees_without_a_limit_per_image(
    tmp_path: Path, document: dict[str, Any], predictions: list[dict[str, Any]]
) -> None:
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = evaluate_lvis(path, predictions, max_detections=20, protocol=FIXED_AP)
    best_first = sorted(predictions, key=lambda item: -item["score"])
    n_seen: Counter[int] = Counter()
    kept = []
    for prediction in best_first:
        if n_seen[prediction["category_id"]] < 20:
            kept.append(prediction)
        n_seen[prediction["category_id"]] += 1
    assert result.n_over_limit == len(predictions) - len(kept) > 0
    assert_equal_to_reference(result, path, kept, max_dets=-1)


@pytest.mark.parametrize("name", ["lvis_val_100.json", "coco-mini/lvis_val.json"])
def test_real_annotations_agree(name: str, make_predictions: Callable[..., Any]) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    predictions = make_predictions(json.loads(path.read_text(encoding="utf-8")), 0)
    assert_equal_to_reference(evaluate_lvis(path, predictions), path, predictions)
