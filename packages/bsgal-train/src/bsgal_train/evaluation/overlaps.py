"""Find which predictions overlap which objects by enough to match them.

Most predictions overlap no object of their category in their image by half, and no other pair can
match; only the ones that can are handed on. Overlaps are computed as pycocotools does, bit by bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from bsgal_train.evaluation.columns import PredictionColumns
from bsgal_train.evaluation.ground_truth import GroundTruth
from bsgal_train.evaluation.run_lengths import run_bounds

__all__ = ["Candidates", "IouType", "box_candidates", "mask_areas", "mask_candidates"]

IouType = Literal["bbox", "segm"]

MIN_OVERLAP = 0.5
"""The lowest IoU at which LVIS matches."""

# Pairs of a prediction and an object that are looked at together, if more than one prediction has
# pairs: their masks take half a kB each and more.
_PAIRS_IN_MEMORY = 65_536


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """P pairs of a prediction and an object that overlap, in the order of the predictions.

    Attributes:
        prediction: int64 (P,), row of the prediction.
        object: int64 (P,), row in `GroundTruth.objects`.
        iou: float64 (P,).
    """

    prediction: npt.NDArray[np.int64]
    object: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]


def box_candidates(
    truth: GroundTruth, boxes_xywh: npt.NDArray[np.float64], pair: npt.NDArray[np.int64]
) -> Candidates:
    """Compare boxes.

    Args:
        truth: The annotation file.
        boxes_xywh: (N, 4), of predictions.
        pair: (N,), their images and categories (`GroundTruth.pairs`).
    """
    parts = []
    for row, item in _same_pair(truth, pair):
        iou = _box_ious(boxes_xywh[row], truth.objects.bbox_xywh[item])
        parts.append(_overlapping(row, item, iou))
    return _joined(parts)


def mask_candidates(
    truth: GroundTruth,
    predictions: PredictionColumns,
    areas: npt.NDArray[np.float64],
    pair: npt.NDArray[np.int64],
) -> Candidates:
    """Compare masks.

    Args:
        truth: The annotation file.
        predictions: N predictions.
        areas: (N,), the areas of their masks.
        pair: (N,), their images and categories (`GroundTruth.pairs`).
    """
    parts = []
    for row, item in _same_pair(truth, pair):
        compared_rows, row_index = np.unique(row, return_inverse=True)
        compared_items, item_index = np.unique(item, return_inverse=True)
        row_rles = list(predictions.rles(compared_rows))
        item_rles = [
            _rle(truth.objects.segmentations[one], *hw)
            for one, hw in zip(
                compared_items.tolist(),
                truth.image_hw[
                    truth.objects.pair[compared_items] // len(truth.category_ids)
                ].tolist(),
                strict=True,
            )
        ]
        may_overlap = _at_most_ious(
            coco_mask.toBbox(row_rles)[row_index],
            areas[row],
            coco_mask.toBbox(item_rles)[item_index],
            mask_areas(item_rles)[item_index],
        )
        kept = np.flatnonzero(may_overlap >= MIN_OVERLAP)
        iou = _mask_ious(row_rles, row_index[kept], item_rles, item_index[kept], pair[row[kept]])
        parts.append(_overlapping(row[kept], item[kept], iou))
    return _joined(parts)


def mask_areas(rles: Iterable[Mapping[str, Any]]) -> npt.NDArray[np.float64]:
    """Count the pixels of masks (N,)."""
    # One by one, because pycocotools 2.0 fails on more than 255.
    return np.fromiter((coco_mask.area(rle) for rle in rles), dtype=np.float64)


def _same_pair(
    truth: GroundTruth, pair: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield predictions (rows) with each object of the same image and category, in blocks."""
    first = np.searchsorted(truth.objects.pair, pair, side="left")
    n_objects = np.searchsorted(truth.objects.pair, pair, side="right") - first
    rows = np.flatnonzero(n_objects)
    first, n_objects = first[rows], n_objects[rows]
    ends = np.cumsum(n_objects)
    start = 0
    while start < len(rows):
        before = ends[start] - n_objects[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS_IN_MEMORY, side="right")))
        repeats = n_objects[start:stop]
        within = np.arange(ends[stop - 1] - before) - np.repeat(
            ends[start:stop] - repeats - before, repeats
        )
        yield np.repeat(rows[start:stop], repeats), np.repeat(first[start:stop], repeats) + within
        start = stop


def _overlapping(
    row: npt.NDArray[np.int64], item: npt.NDArray[np.int64], iou: npt.NDArray[np.float64]
) -> Candidates:
    kept = np.flatnonzero(iou >= MIN_OVERLAP)
    return Candidates(prediction=row[kept], object=item[kept], iou=iou[kept])


def _joined(parts: list[Candidates]) -> Candidates:
    none: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    return Candidates(
        prediction=np.concatenate([none, *(part.prediction for part in parts)]),
        object=np.concatenate([none, *(part.object for part in parts)]),
        iou=np.concatenate([np.zeros(0), *(part.iou for part in parts)]),
    )


def _intersections(
    one_xywh: npt.NDArray[np.float64], other_xywh: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    far_one, far_other = one_xywh[:, :2] + one_xywh[:, 2:], other_xywh[:, :2] + other_xywh[:, 2:]
    sides = np.minimum(far_one, far_other) - np.maximum(one_xywh[:, :2], other_xywh[:, :2])
    sides = np.maximum(sides, 0)
    product: npt.NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return product


def _box_ious(
    one_xywh: npt.NDArray[np.float64], other_xywh: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    shared = _intersections(one_xywh, other_xywh)
    union = one_xywh[:, 2] * one_xywh[:, 3] + other_xywh[:, 2] * other_xywh[:, 3] - shared
    # Two boxes without an area have no union; they do not overlap.
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _at_most_ious(
    one_xywh: npt.NDArray[np.float64],
    one_area: npt.NDArray[np.float64],
    other_xywh: npt.NDArray[np.float64],
    other_area: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Bound the IoU of masks from above by their boxes and areas, all whole numbers."""
    shared = np.minimum(_intersections(one_xywh, other_xywh), np.minimum(one_area, other_area))
    union = one_area + other_area - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _mask_ious(
    row_rles: Sequence[Mapping[str, Any]],
    row: npt.NDArray[np.int64],
    item_rles: Sequence[Mapping[str, Any]],
    item: npt.NDArray[np.int64],
    pair: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Compare masks, those of an image and a category in one call.

    Args:
        row_rles: Masks of predictions.
        row: (P,), which of them.
        item_rles: Masks of objects.
        item: (P,), which of them.
        pair: (P,), their image and category.
    """
    order = np.argsort(pair, kind="stable")
    bounds = run_bounds(pair[order]).tolist()
    ious = np.zeros(len(pair))
    for start, stop in itertools.pairwise(bounds):
        own = order[start:stop]
        rows, row_index = np.unique(row[own], return_inverse=True)
        items, item_index = np.unique(item[own], return_inverse=True)
        table = coco_mask.iou(
            [row_rles[one] for one in rows.tolist()],
            [item_rles[one] for one in items.tolist()],
            [0] * len(items),
        )
        ious[own] = table[row_index, item_index]
    return ious


def _rle(segmentation: Any, height: int, width: int) -> Mapping[str, Any]:
    """Encode an annotation's polygons or run lengths as compressed run lengths."""
    rle: Mapping[str, Any]
    if isinstance(segmentation, Mapping):
        if not isinstance(segmentation["counts"], list):
            return segmentation
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return rle
