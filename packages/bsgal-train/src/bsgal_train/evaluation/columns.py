"""Predictions as columns: one array per field instead of one mapping per prediction.

Six million predictions (LVIS's validation set, 300 in each image) are too many for one Python
object each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_train.evaluation.ground_truth import GroundTruth

__all__ = ["Prediction", "PredictionColumns", "check_columns"]

Prediction = Mapping[str, Any]

_FIELD_OF_IOU_TYPE = {"bbox": "bbox", "segm": "segmentation"}


@dataclass(frozen=True, eq=False, slots=True)
class PredictionColumns:
    """N predictions.

    Attributes:
        image_id: int64 (N,).
        category_id: int64 (N,).
        score: float64 (N,).
        bbox_xywh: float64 (N, 4), pixels; None if there are only masks.
        mask_hw: int64 (N, 2), height and width of the masks; None if there are only boxes.
        mask_counts: COCO run-length counts of each mask, compressed text; None likewise.
    """

    image_id: npt.NDArray[np.int64]
    category_id: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    bbox_xywh: npt.NDArray[np.float64] | None
    mask_hw: npt.NDArray[np.int64] | None
    mask_counts: Sequence[str | bytes] | None

    @classmethod
    def from_predictions(
        cls, predictions: Sequence[Prediction], iou_types: Sequence[str]
    ) -> PredictionColumns:
        """Collect the fields that the IoU types need.

        Raises:
            ValueError: A field is missing, is not a number, or a mask is not run-length encoded.
        """
        fields = ["image_id", "category_id", "score"]
        fields += [_FIELD_OF_IOU_TYPE[iou_type] for iou_type in iou_types]
        for position, prediction in enumerate(predictions):
            if any(field not in prediction for field in fields):
                missing = [field for field in fields if field not in prediction]
                raise ValueError(
                    f"predictions[{position}] has no {', '.join(missing)}; "
                    f"it has {sorted(prediction)}"
                )
        boxes, sizes, counts = None, None, None
        if "bbox" in iou_types:
            boxes = _box_array([prediction["bbox"] for prediction in predictions])
        if "segm" in iou_types:
            masks = [prediction["segmentation"] for prediction in predictions]
            for position, mask in enumerate(masks):
                if not isinstance(mask, Mapping) or "counts" not in mask:
                    raise ValueError(
                        f"predictions[{position}] has a segmentation that is no run-length "
                        "encoding; encode the mask with pycocotools.mask.encode"
                    )
            sizes = np.array([mask["size"] for mask in masks], dtype=np.int64).reshape(-1, 2)
            counts = [mask["counts"] for mask in masks]
        return cls(
            image_id=np.array([one["image_id"] for one in predictions], dtype=np.int64),
            category_id=np.array([one["category_id"] for one in predictions], dtype=np.int64),
            score=np.array([one["score"] for one in predictions], dtype=np.float64),
            bbox_xywh=boxes,
            mask_hw=sizes,
            mask_counts=counts,
        )

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, positions: npt.NDArray[np.int64]) -> PredictionColumns:
        """Return some of the predictions, in the given order."""
        counts = self.mask_counts
        return PredictionColumns(
            image_id=self.image_id[positions],
            category_id=self.category_id[positions],
            score=self.score[positions],
            bbox_xywh=None if self.bbox_xywh is None else self.bbox_xywh[positions],
            mask_hw=None if self.mask_hw is None else self.mask_hw[positions],
            mask_counts=None if counts is None else [counts[i] for i in positions.tolist()],
        )


def check_columns(columns: PredictionColumns, truth: GroundTruth, where: str) -> None:
    """Raise for the first prediction that cannot be scored.

    Args:
        columns: The predictions.
        truth: The annotation file.
        where: What a prediction is called in messages, with a place for its position.

    Raises:
        ValueError: The image or category is not in the annotation file; the score or the box is
            not finite, or the box has a negative side; the mask is not of the image's size.
    """
    for field, ids, known in (
        ("image_id", columns.image_id, truth.image_ids),
        ("category_id", columns.category_id, truth.category_ids),
    ):
        unknown = np.flatnonzero(~np.isin(ids, known))
        if len(unknown):
            raise ValueError(
                f"{where.format(unknown[0])} has {field} {ids[unknown[0]]}, which is not in the "
                "annotation file; were the predictions made on other data, or are class indices "
                "used where category ids belong?"
            )
    bad = np.flatnonzero(~np.isfinite(columns.score))
    if len(bad):
        raise ValueError(
            f"{where.format(bad[0])} has the score {columns.score[bad[0]]}; it must be finite"
        )
    boxes = columns.bbox_xywh
    if boxes is not None:
        bad = np.flatnonzero(~np.isfinite(boxes).all(1) | (boxes[:, 2:] < 0).any(1))
        if len(bad):
            shown = ", ".join(f"{side:g}" for side in boxes[bad[0]])
            raise ValueError(
                f"{where.format(bad[0])} has the bbox [{shown}]; it must be [x, y, width, height] "
                "in pixels, finite and with sides of at least 0"
            )
    if columns.mask_hw is not None:
        expected = truth.image_hw_of(columns.image_id)
        bad = np.flatnonzero((columns.mask_hw != expected).any(1))
        if len(bad):
            first = bad[0]
            raise ValueError(
                f"{where.format(first)} has a mask of {columns.mask_hw[first].tolist()} pixels "
                f"(height, width), but image {columns.image_id[first]} has "
                f"{expected[first].tolist()}"
            )


def _box_array(boxes: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    for position, box in enumerate(boxes):
        if len(box) != 4:
            raise ValueError(
                f"predictions[{position}] has the bbox {list(box)}; it must be "
                "[x, y, width, height] in pixels"
            )
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
