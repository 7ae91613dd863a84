"""Compute precision and recall, one category after another, with faster-coco-eval.

A category's precision does not depend on other categories, so only one category's overlaps are in
memory at a time.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray

from bsgal_train.evaluation.columns import PredictionColumns
from bsgal_train.evaluation.ground_truth import EvaluatedCategory, GroundTruth

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
    predictions: PredictionColumns,
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
    image_ids = {item["image_id"] for item in category.annotations}
    image_ids.update(predictions.image_id.tolist())
    images = [truth.images[image_id] for image_id in sorted(image_ids)]
    evaluator = COCOeval_faster(
        _index(images, category, _copies_of_annotations(category.annotations)),
        _index(images, category, _detections(category, predictions, iou_type)),
        iouType=iou_type,
        lvis_style=True,
        print_function=_logger.debug,
    )
    # A pool of threads for each category would cost more than the overlaps of most.
    evaluator.rle_iou_max_workers = 1
    # All predictions count here; the protocol has set its limit before.
    evaluator.params.maxDets = [max(1, len(predictions))]
    evaluator.evaluate()
    evaluator.accumulate()
    # The axes of length one are the only category and the only limit on detections.
    precision = np.asarray(evaluator.eval["precision"], dtype=np.float64)[:, :, 0, :, 0]
    recall = np.asarray(evaluator.eval["recall"], dtype=np.float64)[:, 0, :, 0]
    return PrecisionRecall(precision, recall)


@functools.cache
def _empty_mask(height: int, width: int) -> dict[str, Any]:
    mask: dict[str, Any] = coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return mask


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


def _detections(
    category: EvaluatedCategory, predictions: PredictionColumns, iou_type: IouType
) -> list[dict[str, Any]]:
    """List the predictions that have an area, as faster-coco-eval reads them.

    LVIS's own evaluation leaves out empty boxes and masks too, instead of counting them as wrong.
    """
    # The area, by which sizes are told apart, is that of what is compared.
    if iou_type == "bbox":
        assert predictions.bbox_xywh is not None, "collected for this IoU type"
        field, regions = "bbox", predictions.bbox_xywh.tolist()
        areas = (predictions.bbox_xywh[:, 2] * predictions.bbox_xywh[:, 3]).tolist()
    else:
        assert predictions.mask_hw is not None, "collected for this IoU type"
        assert predictions.mask_counts is not None
        field = "segmentation"
        regions = [
            {"size": size, "counts": counts}
            for size, counts in zip(
                predictions.mask_hw.tolist(), predictions.mask_counts, strict=True
            )
        ]
        areas = np.asarray(coco_mask.area(regions), dtype=np.float64).tolist() if regions else []
        # Where nothing is to be found, a mask is compared with nothing: decoding it would take
        # most of the time.
        images = {annotation["image_id"] for annotation in category.annotations}
        is_compared = np.isin(predictions.image_id, list(images))
        for position in np.flatnonzero(~is_compared).tolist():
            regions[position] = _empty_mask(*regions[position]["size"])
    return [
        {
            "id": number,
            "iscrowd": 0,
            "image_id": image_id,
            "category_id": category.category_id,
            "score": score,
            "area": area,
            field: region,
        }
        for number, (image_id, score, area, region) in enumerate(
            zip(
                predictions.image_id.tolist(),
                predictions.score.tolist(),
                areas,
                regions,
                strict=True,
            ),
            start=1,
        )
        if area > 0
    ]
