from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.errors import AnnotationError, AnnotationFormatError, UnknownCategoryError
from bsgal_train.evaluation import FIXED_AP, LVIS, Protocol, evaluate_lvis

Document = dict[str, Any]
Predictions = list[dict[str, Any]]


def perfect(document: Document) -> Predictions:
    fields = ("image_id", "category_id", "bbox", "segmentation")
    return [
        {"score": 0.9, **{field: item[field] for field in fields}}
        for item in document["annotations"]
    ]


def square(side: int, image_id: int = 1, category_id: int = 1) -> Document:
    """An annotation of the upper left corner of a 100 x 100 px image."""
    return {
        "id": 1,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [0.0, 0.0, float(side), float(side)],
        "area": float(side * side),
        "segmentation": [[0, 0, side, 0, side, side, 0, side]],
    }


def one_image(*annotations: Document, **image: Any) -> Document:
    """A file with one image and the categories 1 (rare) and 2 (frequent)."""
    entry = {
        "id": 1,
        "height": 100,
        "width": 100,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        **image,
    }
    categories = [
        {"id": 1, "name": "one", "frequency": "r"},
        {"id": 2, "name": "two", "frequency": "f"},
    ]
    return {"images": [entry], "annotations": list(annotations), "categories": categories}


def box(side: float, score: float = 0.5, category_id: int = 1) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category_id, "bbox": [0, 0, side, side], "score": score}


def test_perfect_predictions_score_one(document: Document) -> None:
    result = evaluate_lvis(document, perfect(document))
    for metrics in result.metrics.values():
        assert {value for value in asdict(metrics).values() if value is not None} == {1.0}


def test_no_predictions_score_zero(document: Document) -> None:
    result = evaluate_lvis(document, [])
    for metrics in result.metrics.values():
        values = asdict(metrics)
        assert values.pop("ap_predicted") is None
        assert {value for value in values.values() if value is not None} == {0.0}
    assert all(item.ap["segm"] in (0.0, None) for item in result.categories)


def test_group_without_an_object_has_no_score() -> None:
    metrics = evaluate_lvis(one_image(square(40)), [box(40)], ["bbox"]).metrics["bbox"]
    assert (metrics.apr, metrics.apc, metrics.apf) == (1.0, None, None)
    assert (metrics.aps, metrics.apm, metrics.apl) == (None, 1.0, None)


def test_file_without_frequencies_has_no_group_scores(document: Document) -> None:
    for category in document["categories"]:
        del category["frequency"]
    metrics = evaluate_lvis(document, perfect(document)).metrics["segm"]
    assert metrics.ap == 1.0
    assert (metrics.apr, metrics.apc, metrics.apf) == (None, None, None)


def test_overlap_decides_up_to_which_threshold_a_box_counts() -> None:
    # Overlap 70 * 100 / (100 * 100) = 0.7: right at 0.50, 0.55, ..., 0.65, and at 0.70 itself.
    prediction = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 70, 100], "score": 0.5}
    metrics = evaluate_lvis(one_image(square(100)), [prediction], ["bbox"]).metrics["bbox"]
    assert metrics.ap50 == 1.0
    assert metrics.ap75 == 0.0
    assert metrics.ap == pytest.approx(0.5)
    assert metrics.ar == pytest.approx(0.5)


def test_wrong_box_with_a_higher_score_halves_the_precision() -> None:
    predictions = [box(40, score=0.4), box(5, score=0.8)]
    metrics = evaluate_lvis(one_image(square(40)), predictions, ["bbox"]).metrics["bbox"]
    assert metrics.ap == pytest.approx(0.5)


def test_category_nobody_looked_for_is_not_judged() -> None:
    predictions = [box(40, score=0.4), box(40, score=0.8, category_id=2)]
    result = evaluate_lvis(one_image(square(40)), predictions, ["bbox"])
    assert result.n_unjudged == 1
    assert result.metrics["bbox"].ap == 1.0


def test_category_known_to_be_absent_is_judged() -> None:
    document = one_image(square(40), neg_category_ids=[2])
    result = evaluate_lvis(document, [box(40), box(40, category_id=2)], ["bbox"])
    assert result.n_unjudged == 0
    assert [item.n_predictions for item in result.categories] == [1, 1]


def test_unmatched_box_is_forgiven_where_annotation_is_not_exhaustive() -> None:
    predictions = [box(40, score=0.4), box(5, score=0.8)]
    document = one_image(square(40), not_exhaustive_category_ids=[1])
    assert evaluate_lvis(document, predictions, ["bbox"]).metrics["bbox"].ap == 1.0


def test_category_never_predicted_counts_as_zero_unless_left_out() -> None:
    document = one_image(square(40), {**square(60, category_id=2), "id": 2})
    metrics = evaluate_lvis(document, [box(40)], ["bbox"]).metrics["bbox"]
    assert metrics.ap == pytest.approx(0.5)
    assert metrics.ap_predicted == 1.0


def test_annotation_with_the_id_zero_can_be_found() -> None:
    document = one_image({**square(40), "id": 0})
    assert evaluate_lvis(document, [box(40)], ["bbox"]).metrics["bbox"].ap == 1.0


def test_size_of_a_mask_is_its_own_area(document: Document, predictions: Predictions) -> None:
    with_box = evaluate_lvis(document, predictions, ["segm"])
    for prediction in predictions:
        del prediction["bbox"]
    assert evaluate_lvis(document, predictions, ["segm"]) == with_box


def test_empty_masks_and_boxes_are_left_out() -> None:
    predictions = [box(40, score=0.4), box(0, score=0.8)]
    assert evaluate_lvis(one_image(square(40)), predictions, ["bbox"]).metrics["bbox"].ap == 1.0


def test_limit_per_image_keeps_the_highest_scores() -> None:
    document = one_image(square(40), {**square(60, category_id=2), "id": 2})
    predictions = [box(40, score=0.3), box(60, score=0.6, category_id=2)]
    result = evaluate_lvis(document, predictions, ["bbox"], max_detections=1)
    assert result.n_over_limit == 1
    assert result.metrics["bbox"].apr == 0.0
    assert result.metrics["bbox"].apf == 1.0


def test_fixed_ap_has_no_limit_per_image_but_one_per_category() -> None:
    document = one_image(square(40), {**square(60, category_id=2), "id": 2})
    predictions = [box(40, score=0.3), box(60, score=0.6, category_id=2), box(9, score=0.1)]
    result = evaluate_lvis(document, predictions, ["bbox"], max_detections=1, protocol=FIXED_AP)
    assert result.n_over_limit == 1
    assert result.metrics["bbox"].ap == 1.0


def test_result_names_its_protocol(document: Document) -> None:
    assert str(evaluate_lvis(document, []).protocol) == "lvis (300 detections per image)"
    fixed = evaluate_lvis(document, [], protocol=FIXED_AP).protocol
    assert str(fixed) == "fixed-ap (10000 detections per category)"
    limited = evaluate_lvis(document, [], max_detections=100).protocol
    assert limited == Protocol(name="lvis", max_detections=100, per="image")
    assert limited != LVIS


def test_order_of_predictions_does_not_matter_without_ties(
    document: Document, predictions: Predictions
) -> None:
    for number, prediction in enumerate(predictions):
        prediction["score"] = (number * 7919 % len(predictions)) / len(predictions)
    assert evaluate_lvis(document, predictions) == evaluate_lvis(document, predictions[::-1])


def test_input_is_left_as_it_is(document: Document, predictions: Predictions) -> None:
    before = copy.deepcopy((document, predictions))
    evaluate_lvis(document, predictions)
    assert (document, predictions) == before


def test_counts_are_those_of_the_file(document: Document, predictions: Predictions) -> None:
    result = evaluate_lvis(document, predictions)
    assert result.n_images == len(document["images"])
    assert result.n_instances == len(document["annotations"])
    assert result.n_predictions == len(predictions)
    for item in result.categories:
        own = [a for a in document["annotations"] if a["category_id"] == item.category_id]
        assert item.n_instances == len(own)
        assert item.n_images == len({annotation["image_id"] for annotation in own})
    n_judged = sum(item.n_predictions for item in result.categories)
    assert n_judged + result.n_unjudged + result.n_over_limit == len(predictions)


def test_ap_is_the_mean_over_the_categories_with_an_object(
    document: Document, predictions: Predictions
) -> None:
    result = evaluate_lvis(document, predictions, ["segm"])
    values = [item.ap["segm"] for item in result.categories if item.ap["segm"] is not None]
    assert result.metrics["segm"].ap == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_result_survives_json(document: Document, predictions: Predictions) -> None:
    result = evaluate_lvis(document, predictions).to_dict()
    assert result["schema"] == "bsgal.lvis_result/1"
    assert json.loads(json.dumps(result))["metrics"] == result["metrics"]


def test_only_the_fields_of_the_iou_type_are_needed(document: Document) -> None:
    masks = [{k: v for k, v in item.items() if k != "bbox"} for item in perfect(document)]
    assert evaluate_lvis(document, masks, ["segm"]).metrics["segm"].ap == 1.0
    with pytest.raises(ValueError, match=r"predictions\[0\] has no bbox; it has \['category_id'"):
        evaluate_lvis(document, masks, ["bbox"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"predictions\[1\] has image_id 99, which is not in the annotation"),
        ({"category_id": 0}, r"has category_id 0, .* are class indices used"),
        ({"score": float("nan")}, "has the score nan; it must be finite"),
        ({"bbox": [0, 0, -1, 5]}, r"has the bbox \[0, 0, -1, 5\]; it must be \[x, y, width"),
        ({"bbox": [0, 0, float("inf"), 5]}, "finite"),
        ({"segmentation": [[0, 0, 5, 0, 5, 5]]}, "no run-length encoding"),
        ({"segmentation": {"size": [9, 9], "counts": ""}}, r"mask of \[9, 9\] pixels"),
        ({"segmentation": {"counts": ""}}, "no run-length encoding"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "run lengths as a list; compress"),
    ],
)
def test_bad_prediction_is_named(document: Document, change: dict[str, Any], message: str) -> None:
    predictions = perfect(document)
    predictions[1] |= change
    with pytest.raises(ValueError, match=message):
        evaluate_lvis(document, predictions)


def test_run_lengths_that_were_cut_off_are_refused(document: Document) -> None:
    predictions = perfect(document)
    mask = predictions[1]["segmentation"]
    for end in range(len(mask["counts"])):
        predictions[1]["segmentation"] = mask | {"counts": mask["counts"][:end]}
        with pytest.raises(
            ValueError, match=r"predictions\[1\] \(image \d+, category \d+\): .* cut off\?"
        ):
            evaluate_lvis(document, predictions, ["segm"])


@pytest.mark.parametrize("iou_types", [["mask"], []])
def test_unknown_iou_type_is_refused(document: Document, iou_types: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"`iou_types` must be of \('bbox', 'segm'\)"):
        evaluate_lvis(document, [], iou_types)


def test_limit_below_one_is_refused(document: Document) -> None:
    with pytest.raises(ValueError, match="`max_detections` must be at least 1, got 0"):
        evaluate_lvis(document, [], max_detections=0)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no annotation file at .*absent\.json"):
        evaluate_lvis(tmp_path / "absent.json", [])


@pytest.mark.parametrize(
    ("part", "field", "message"),
    [
        ("images", "neg_category_ids", r"no list `neg_category_ids` \(first: image 1\)"),
        ("images", "not_exhaustive_category_ids", "no list `not_exhaustive_category_ids`"),
        ("categories", "frequency", "6 of 7 categories have a `frequency`"),
        ("annotations", "area", "annotation 1 has area None"),
    ],
)
def test_annotation_file_without_a_field_is_refused(
    document: Document, part: str, field: str, message: str
) -> None:
    del document[part][0][field]
    with pytest.raises(AnnotationFormatError, match=message):
        evaluate_lvis(document, [])


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        ("image_id", AnnotationFormatError, "annotation 3 is of image 999"),
        ("category_id", UnknownCategoryError, "annotation 3 has category 999"),
    ],
)
def test_annotation_of_something_unknown_is_refused(
    document: Document, field: str, error: type[Exception], message: str
) -> None:
    document["annotations"][2][field] = 999
    with pytest.raises(error, match=message):
        evaluate_lvis(document, [])


def test_file_without_categories_is_refused(document: Document) -> None:
    del document["categories"]
    with pytest.raises(AnnotationFormatError, match="has no list of objects `categories`"):
        evaluate_lvis(document, [])


def test_file_with_an_empty_list_of_categories_is_refused(document: Document) -> None:
    with pytest.raises(AnnotationFormatError, match="has no categories"):
        evaluate_lvis({**document, "categories": [], "annotations": []}, [])
