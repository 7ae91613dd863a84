"""Compute precision and recall, one category after another, with faster-coco-eval.

A category's precision does not depend on other categories, so only one category's overlaps are in
memory at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray

from bsgal_train.evaluation.ground_truth import EvaluatedCategory, GroundTruth
from bsgal_train.evaluation.protocol import Prediction

__all__ = ["AREA_LABELS", "IOU_THRESHOLDS", "IouType", "PrecisionRecall", "precision_recall"]

IouType = Literal["bbox", "segm"]

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
AREA_LABELS = ("all", "small", "medium", "large")
_N_RECALL_THRESHOLDS = 101

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Precision and recall of one category; -1 where no object of an area range exists."""

    precision: NDArray[np.float64]
    """Shape (IoU thresholds, recall thresholds, area ranges): T, R, A."""
    recall: NDArray[np.float64]
    """Shape (IoU thresholds, area ranges): T, A."""


_UNDEFINED = PrecisionRecall(
    precision=np.full((len(IOU_THRESHOLDS), _N_RECALL_THRESHOLDS, len(AREA_LABELS)), -1.0),
    recall=np.full((len(IOU_THRESHOLDS), len(AREA_LABELS)), -1.0),
)


def precision_recall(
    truth: GroundTruth,
    category: EvaluatedCategory,
    predictions: Sequence[Prediction],
    iou_type: IouType,
) -> PrecisionRecall:
    """Match a category's predictions with its objects.

    Args:
        truth: The annotation file.
        category: One of its categories.
        predictions: Those of this category in images where it was looked for, all of which count.
        iou_type: Whether boxes or masks are compared.
    """
    if not category.annotations:
        return _UNDEFINED
    image_ids = {item["image_id"] for item in (*category.annotations, *predictions)}
    images = [truth.images[image_id] for image_id in sorted(image_ids)]
    evaluator = COCOeval_faster(
        _index(images, category, _copies_of_annotations(category.annotations)),
        _index(images, category, _copies_of_predictions(predictions, iou_type)),
        iouType=iou_type,
        lvis_style=True,
        print_function=_logger.debug,
    )
    # All predictions count here; the protocol has set its limit before.
    evaluator.params.maxDets = [max(1, len(predictions))]
    evaluator.evaluate()
    evaluator.accumulate()
    # The axes of length one are the only category and the only limit on detections.
    precision = np.asarray(evaluator.eval["precision"], dtype=np.float64)[:, :, 0, :, 0]
    recall = np.asarray(evaluator.eval["recall"], dtype=np.float64)[:, 0, :, 0]
    return PrecisionRecall(precision, recall)


def _index(
    images: Sequence[Any], category: EvaluatedCategory, annotations: list[dict[str, Any]]
) -> COCO:
    index = COCO()
    index.dataset = {
        "images": list(images),
        # The evaluator insists on a frequency; it does not change a single category's numbers.
        "categories": [{"id": category.category_id, "frequency": "f"}],
        "annotations": annotations,
    }
    index.createIndex()
    return index


def _copies_of_annotations(annotations: Sequence[Any]) -> list[dict[str, Any]]:
    """Copy what matching needs, as the evaluator writes into what it is given."""
    fields = ("image_id", "category_id", "bbox", "area", "segmentation")
    # Ids are counted from 1, because an object with the id 0 would count as not matched.
    return [
        {"id": number, "iscrowd": 0, **{field: annotation[field] for field in fields}}
        for number, annotation in enumerate(annotations, start=1)
    ]


def _copies_of_predictions(
    predictions: Sequence[Prediction], iou_type: IouType
) -> list[dict[str, Any]]:
    """Copy what matching needs of the predictions that have an area.

    LVIS's own evaluation leaves out empty boxes and masks too, instead of counting them as wrong.
    """
    copies = []
    for number, prediction in enumerate(predictions, start=1):
        copy: dict[str, Any] = {"id": number, "iscrowd": 0}
        copy |= {field: prediction[field] for field in ("image_id", "category_id", "score")}
        # The area, by which sizes are told apart, is that of what is compared.
        if iou_type == "bbox":
            copy["bbox"] = prediction["bbox"]
            copy["area"] = prediction["bbox"][2] * prediction["bbox"][3]
        else:
            copy["segmentation"] = prediction["segmentation"]
            copy["area"] = float(coco_mask.area(prediction["segmentation"]))
        if copy["area"] > 0:
            copies.append(copy)
    return copies
