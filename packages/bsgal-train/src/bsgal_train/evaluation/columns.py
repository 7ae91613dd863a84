"""Predictions as columns: one array per field instead of one mapping per prediction.

Six million predictions (LVIS's validation set, 300 in each image) are too many for one Python
object each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bsgal_train.evaluation.ground_truth import GroundTruth, contains
from bsgal_train.evaluation.mask_counts import described_pixels

__all__ = ["Prediction", "PredictionColumns", "check_columns"]

Prediction = Mapping[str, Any]

_FIELD_OF_IOU_TYPE = {"bbox": "bbox", "segm": "segmentation"}

# So many masks become Python objects at a time.
_MASKS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False, slots=True)
class PredictionColumns:
    """N predictions, in the order in which they were made.

    Attributes:
        position: int64 (N,), position among all that are evaluated, for messages and ties.
        image_id: int64 (N,).
        category_id: int64 (N,).
        score: float64 (N,).
        bbox_xywh: float64 (N, 4), pixels; None if there are only masks.
        mask_hw: int64 (N, 2), height and width of the masks; None if there are only boxes.
        mask_counts: COCO run-length counts of each mask, compressed text, as an Arrow array
            (or several in a row) of binary values, which takes no Python object for each; None
            likewise.
    """

    position: npt.NDArray[np.int64]
    image_id: npt.NDArray[np.int64]
    category_id: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    bbox_xywh: npt.NDArray[np.float64] | None
    mask_hw: npt.NDArray[np.int64] | None
    mask_counts: Any

    @classmethod
    def from_predictions(
        cls, predictions: Sequence[Prediction], iou_types: Sequence[str]
    ) -> PredictionColumns:
        """Collect the fields that the IoU types need.

        Raises:
            ValueError: A field is missing, is not a number, or a mask is not run-length encoded.
        """
        has_boxes, has_masks = "bbox" in iou_types, "segm" in iou_types
        # One list per field: a tuple per prediction would set off Python's garbage collector, again
        # and again, on everything that the caller holds.
        try:
            image_id = [prediction["image_id"] for prediction in predictions]
            category_id = [prediction["category_id"] for prediction in predictions]
            score = [prediction["score"] for prediction in predictions]
            boxes = [prediction["bbox"] for prediction in predictions if has_boxes]
            masks = [prediction["segmentation"] for prediction in predictions if has_masks]
        except KeyError:
            raise ValueError(_missing_field(predictions, iou_types)) from None
        return cls(
            position=np.arange(len(predictions)),
            image_id=np.array(image_id, dtype=np.int64),
            category_id=np.array(category_id, dtype=np.int64),
            score=np.array(score, dtype=np.float64),
            bbox_xywh=_box_array(boxes) if has_boxes else None,
            mask_hw=_size_array(masks) if has_masks else None,
            mask_counts=_counts_array(masks) if has_masks else None,
        )

    def __len__(self) -> int:
        return len(self.image_id)

    def rles(self, rows: npt.NDArray[np.int64] | None = None) -> Iterator[dict[str, Any]]:
        """Yield all masks, or those of some rows, as pycocotools reads them."""
        assert self.mask_hw is not None, "collected for this IoU type"
        own = self if rows is None else self.take(rows)
        assert own.mask_hw is not None, "as before"
        # Few sizes occur; masks share them instead of having a list each.
        sizes: dict[tuple[int, int], list[int]] = {}
        for start in range(0, len(own), _MASKS_AT_ONCE):
            part = slice(start, start + _MASKS_AT_ONCE)
            height, width = own.mask_hw[part].T.tolist()
            for hw, counts in zip(
                zip(height, width, strict=True), own.mask_counts[part].to_pylist(), strict=True
            ):
                yield {"size": sizes.setdefault(hw, list(hw)), "counts": counts}

    def take(self, rows: npt.NDArray[np.int64]) -> PredictionColumns:
        """Return some of the predictions, in the given order."""
        return PredictionColumns(
            position=self.position[rows],
            image_id=self.image_id[rows],
            category_id=self.category_id[rows],
            score=self.score[rows],
            bbox_xywh=None if self.bbox_xywh is None else self.bbox_xywh[rows],
            mask_hw=None if self.mask_hw is None else self.mask_hw[rows],
            mask_counts=None if self.mask_counts is None else self.mask_counts.take(pa.array(rows)),
        )


def check_columns(columns: PredictionColumns, truth: GroundTruth, where: str) -> None:
    """Raise for the first prediction that cannot be scored.

    Args:
        columns: The predictions.
        truth: The annotation file.
        where: What a prediction is called in messages, with a place for its position.

    Raises:
        ValueError: The image or category is not in the annotation file; the score or the box is
            not finite, or the box has a negative side; the mask is not of the image's size, or its
            run lengths describe more or fewer pixels.
    """

    def name(row: int) -> str:
        return where.format(columns.position[row])

    for field, ids, known in (
        ("image_id", columns.image_id, truth.image_ids),
        ("category_id", columns.category_id, truth.category_ids),
    ):
        unknown = np.flatnonzero(~contains(known, ids))
        if len(unknown):
            raise ValueError(
                f"{name(unknown[0])} has {field} {ids[unknown[0]]}, which is not in the "
                "annotation file; were the predictions made on other data, or are class indices "
                "used where category ids belong?"
            )
    bad = np.flatnonzero(~np.isfinite(columns.score))
    if len(bad):
        raise ValueError(f"{name(bad[0])} has the score {columns.score[bad[0]]}; it must be finite")
    boxes = columns.bbox_xywh
    if boxes is not None:
        bad = np.flatnonzero(~np.isfinite(boxes).all(1) | (boxes[:, 2:] < 0).any(1))
        if len(bad):
            shown = ", ".join(f"{side:g}" for side in boxes[bad[0]])
            raise ValueError(
                f"{name(bad[0])} has the bbox [{shown}]; it must be [x, y, width, height] "
                "in pixels, finite and with sides of at least 0"
            )
    if columns.mask_hw is not None:
        expected = truth.image_hw_of(columns.image_id)
        bad = np.flatnonzero((columns.mask_hw != expected).any(1))
        if len(bad):
            first = bad[0]
            raise ValueError(
                f"{name(first)} has a mask of {columns.mask_hw[first].tolist()} pixels "
                f"(height, width), but image {columns.image_id[first]} has "
                f"{expected[first].tolist()}"
            )
        _check_run_lengths(columns, name)


def _check_run_lengths(columns: PredictionColumns, name: Callable[[int], str]) -> None:
    assert columns.mask_hw is not None, "checked by the caller"
    expected = columns.mask_hw.prod(1)
    for start in range(0, len(columns), _MASKS_AT_ONCE):
        part = slice(start, start + _MASKS_AT_ONCE)
        found = described_pixels(columns.mask_counts[part].to_pylist())
        bad = np.flatnonzero(found != expected[part])
        if len(bad):
            row, n_px = start + int(bad[0]), int(found[bad[0]])
            what = "are malformed" if n_px < 0 else f"add up to {n_px} pixels"
            raise ValueError(
                f"{name(row)} (image {columns.image_id[row]}, category "
                f"{columns.category_id[row]}): the run lengths of its mask {what}, those of its "
                f"size add up to {expected[row]}; were they cut off?"
            )


def _missing_field(predictions: Sequence[Prediction], iou_types: Sequence[str]) -> str:
    fields = ["image_id", "category_id", "score"]
    fields += [_FIELD_OF_IOU_TYPE[iou_type] for iou_type in iou_types]
    position, prediction = next(
        (position, prediction)
        for position, prediction in enumerate(predictions)
        if any(field not in prediction for field in fields)
    )
    missing = [field for field in fields if field not in prediction]
    return f"predictions[{position}] has no {', '.join(missing)}; it has {sorted(prediction)}"


def _box_array(boxes: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    for position, box in enumerate(boxes):
        if len(box) != 4:
            raise ValueError(
                f"predictions[{position}] has the bbox {list(box)}; it must be "
                "[x, y, width, height] in pixels"
            )
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _size_array(masks: Sequence[Any]) -> npt.NDArray[np.int64]:
    for position, mask in enumerate(masks):
        if not isinstance(mask, Mapping) or not {"counts", "size"} <= mask.keys():
            raise ValueError(
                f"predictions[{position}] has a segmentation that is no run-length "
                "encoding; encode the mask with pycocotools.mask.encode"
            )
        if not isinstance(mask["counts"], str | bytes):
            raise ValueError(
                f"predictions[{position}] has run lengths as a {type(mask['counts']).__name__}; "
                "compress them with pycocotools.mask.frPyObjects"
            )
    return np.array([mask["size"] for mask in masks], dtype=np.int64).reshape(-1, 2)


def _counts_array(masks: Sequence[Mapping[str, Any]]) -> Any:
    return pa.array([mask["counts"] for mask in masks], type=pa.large_binary())
