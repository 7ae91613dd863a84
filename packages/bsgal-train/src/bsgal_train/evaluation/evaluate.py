"""Evaluate predictions against an LVIS annotation file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from bsgal_train.annotations import Frequency
from bsgal_train.evaluation.columns import Prediction, PredictionColumns, check_columns
from bsgal_train.evaluation.ground_truth import EvaluatedCategory, GroundTruth
from bsgal_train.evaluation.matching import (
    AREA_LABELS,
    IOU_THRESHOLDS,
    IouType,
    PrecisionRecall,
    precision_recall,
)
from bsgal_train.evaluation.protocol import LVIS, Protocol
from bsgal_train.evaluation.result import CategoryResult, LvisMetrics, LvisResult
from bsgal_train.evaluation.shards import PredictionShards

__all__ = ["evaluate_lvis"]

_AT_50, _AT_75 = (int(np.argmin(abs(IOU_THRESHOLDS - threshold))) for threshold in (0.5, 0.75))


def evaluate_lvis(
    annotations: str | Path | Mapping[str, Any],
    predictions: Sequence[Prediction] | PredictionShards,
    iou_types: Sequence[IouType] = ("bbox", "segm"),
    max_detections: int | None = None,
    protocol: Protocol = LVIS,
) -> LvisResult:
    """Compute LVIS's average precision and recall.

    A prediction counts only in images for which the file says whether its category is there, and
    an unmatched one does not count against the detector where the category was not annotated
    exhaustively, as in LVIS's own evaluation. Sizes of masks are told apart by the area of the
    mask, also if the prediction has a box.

    Args:
        annotations: An LVIS v1 annotation file: its path, or the object it holds.
        predictions: Mappings with `image_id`, `category_id`, `score`, for boxes `bbox` (x, y,
            width, height in pixels), for masks `segmentation` (COCO run-length encoding). Not
            changed. Or the shards of a run, which are read a few categories at a time: memory
            follows the largest category, not their number.
        iou_types: What to compare, `bbox` and `segm`.
        max_detections: Replaces the protocol's limit.
        protocol: Which predictions count: `LVIS`, or `FIXED_AP`.

    Returns:
        The result; without a single prediction every average precision is 0, and without stated
        frequency groups there is no number for them.

    Raises:
        AnnotationError: The annotation file cannot be used.
        ValueError: A prediction cannot be scored, or an IoU type is unknown.
    """
    unknown = set(iou_types) - set(get_args(IouType))
    if unknown or not iou_types:
        raise ValueError(f"`iou_types` must be of {get_args(IouType)}, got {tuple(iou_types)}")
    if max_detections is not None:
        protocol = Protocol(name=protocol.name, max_detections=max_detections, per=protocol.per)
    truth = GroundTruth.load(annotations)
    if isinstance(predictions, PredictionShards):
        n_over_limit, parts = _parts_of_shards(predictions, truth, iou_types, protocol)
    else:
        n_over_limit, parts = _parts_of_list(predictions, truth, iou_types, protocol)
    categories = list(truth.categories.values())
    found: dict[IouType, dict[int, PrecisionRecall]] = {iou_type: {} for iou_type in iou_types}
    n_judged = dict.fromkeys(truth.categories, 0)
    nothing = PredictionColumns.from_predictions([], iou_types)
    for part in parts:
        for category_id, own in _by_category(part):
            n_judged[category_id] = len(own)
            for iou_type in iou_types:
                found[iou_type][category_id] = precision_recall(
                    truth, truth.categories[category_id], own, iou_type
                )
    curves = {
        iou_type: [
            found[iou_type].get(category.category_id)
            or precision_recall(truth, category, nothing, iou_type)
            for category in categories
        ]
        for iou_type in iou_types
    }
    return LvisResult(
        protocol=protocol,
        n_images=len(truth.images),
        n_instances=sum(len(category.annotations) for category in categories),
        n_predictions=len(predictions),
        n_over_limit=n_over_limit,
        n_unjudged=len(predictions) - n_over_limit - sum(n_judged.values()),
        metrics={
            iou_type: _metrics(categories, list(n_judged.values()), curves[iou_type])
            for iou_type in iou_types
        },
        categories=tuple(
            _category_result(
                category,
                n_judged[category.category_id],
                {iou_type: curves[iou_type][index] for iou_type in iou_types},
            )
            for index, category in enumerate(categories)
        ),
    )


def _parts_of_list(
    predictions: Sequence[Prediction],
    truth: GroundTruth,
    iou_types: Sequence[IouType],
    protocol: Protocol,
) -> tuple[int, Iterator[PredictionColumns]]:
    """Return how many are over the limit, and the rest as far as it is judged, as one part."""
    columns = PredictionColumns.from_predictions(predictions, iou_types)
    check_columns(columns, truth, "predictions[{}]")
    kept = protocol.kept(columns.image_id, columns.category_id, columns.score)
    judged = truth.is_judged(columns.image_id, columns.category_id)
    return int((~kept).sum()), iter([columns.take(np.flatnonzero(kept & judged))])


def _parts_of_shards(
    shards: PredictionShards,
    truth: GroundTruth,
    iou_types: Sequence[IouType],
    protocol: Protocol,
) -> tuple[int, Iterator[PredictionColumns]]:
    """The same with one part for each bucket, which holds all of its categories."""
    positions, heads = shards.heads()
    check_columns(heads, truth, f"prediction {{}} in {shards.folder}")
    kept = protocol.kept(heads.image_id, heads.category_id, heads.score)
    counts = kept & truth.is_judged(heads.image_id, heads.category_id)

    def parts() -> Iterator[PredictionColumns]:
        for number, own in enumerate(positions):
            bucket = shards.bucket(number, iou_types)
            check_columns(bucket, truth, f"prediction {{}} of bucket {number} in {shards.folder}")
            yield bucket.take(np.flatnonzero(counts[own]))

    return int((~kept).sum()), parts()


def _by_category(columns: PredictionColumns) -> Iterator[tuple[int, PredictionColumns]]:
    """Yield each category's predictions, in their order."""
    order = np.argsort(columns.category_id, kind="stable")
    ids, starts = np.unique(columns.category_id[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    for position, category_id in enumerate(ids.tolist()):
        yield category_id, columns.take(order[bounds[position] : bounds[position + 1]])


def _metrics(
    categories: Sequence[EvaluatedCategory],
    n_predictions: Sequence[int],
    curves: Sequence[PrecisionRecall],
) -> LvisMetrics:
    """Average over categories as LVIS does: over all defined entries at once."""
    # Shapes (category, IoU threshold, recall threshold, area range) and without recall thresholds.
    precision = np.stack([curve.precision for curve in curves])
    recall = np.stack([curve.recall for curve in curves])
    area = {label: index for index, label in enumerate(AREA_LABELS)}

    def of_group(frequency: Frequency) -> float | None:
        is_member = np.array([category.frequency == frequency for category in categories])
        return _mean_of_defined(precision[is_member, :, :, area["all"]])

    return LvisMetrics(
        ap=_mean_of_defined(precision[..., area["all"]]),
        ap50=_mean_of_defined(precision[:, _AT_50, :, area["all"]]),
        ap75=_mean_of_defined(precision[:, _AT_75, :, area["all"]]),
        aps=_mean_of_defined(precision[..., area["small"]]),
        apm=_mean_of_defined(precision[..., area["medium"]]),
        apl=_mean_of_defined(precision[..., area["large"]]),
        apr=of_group("r"),
        apc=of_group("c"),
        apf=of_group("f"),
        ar=_mean_of_defined(recall[..., area["all"]]),
        ars=_mean_of_defined(recall[..., area["small"]]),
        arm=_mean_of_defined(recall[..., area["medium"]]),
        arl=_mean_of_defined(recall[..., area["large"]]),
        ap_predicted=_mean_of_defined(precision[np.array(n_predictions) > 0, ..., area["all"]]),
    )


def _category_result(
    category: EvaluatedCategory, n_predictions: int, curves: Mapping[IouType, PrecisionRecall]
) -> CategoryResult:
    return CategoryResult(
        category_id=category.category_id,
        name=category.name,
        frequency=category.frequency,
        n_images=len({annotation["image_id"] for annotation in category.annotations}),
        n_instances=len(category.annotations),
        n_predictions=n_predictions,
        ap={key: _mean_of_defined(curve.precision[..., 0]) for key, curve in curves.items()},
        ap50={
            key: _mean_of_defined(curve.precision[_AT_50, :, 0]) for key, curve in curves.items()
        },
        ar={key: _mean_of_defined(curve.recall[:, 0]) for key, curve in curves.items()},
    )


def _mean_of_defined(values: NDArray[np.float64]) -> float | None:
    """Average all entries but those of -1, which stand for nothing to find."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
