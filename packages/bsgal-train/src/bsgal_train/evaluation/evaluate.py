"""Evaluate predictions against an LVIS annotation file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from bsgal_train.annotations import Frequency
from bsgal_train.evaluation.columns import Prediction, PredictionColumns, check_columns
from bsgal_train.evaluation.curves import Curves
from bsgal_train.evaluation.ground_truth import EvaluatedCategory, GroundTruth, contains
from bsgal_train.evaluation.matching import (
    AREA_LABELS,
    IOU_THRESHOLDS,
    Matches,
    is_in_range,
    match,
)
from bsgal_train.evaluation.overlaps import (
    IouType,
    box_candidates,
    mask_areas,
    mask_candidates,
)
from bsgal_train.evaluation.protocol import LVIS, Protocol
from bsgal_train.evaluation.result import CategoryResult, LvisMetrics, LvisResult
from bsgal_train.evaluation.run_lengths import run_bounds
from bsgal_train.evaluation.shards import PredictionShards

__all__ = ["evaluate_lvis"]

_AT_50, _AT_75 = (int(np.argmin(abs(IOU_THRESHOLDS - threshold))) for threshold in (0.5, 0.75))

# Categories are computed together as long as they have no more predictions than this.
_ROWS_TOGETHER = 32_768


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
        parts = _parts_of_shards(predictions, truth, iou_types, protocol)
    else:
        parts = _part_of_list(predictions, truth, iou_types, protocol)
    n_objects = _objects_in_range(truth)
    curves = {iou_type: Curves.without_predictions(n_objects) for iou_type in iou_types}
    n_judged = np.zeros(len(truth.categories), dtype=np.int64)
    n_over_limit = 0
    for n_part_over_limit, part in parts:
        n_over_limit += n_part_over_limit
        for group in _groups(part):
            category = np.searchsorted(truth.category_ids, group.category_id)
            n_judged += np.bincount(category, minlength=len(n_judged))
            for iou_type in iou_types:
                _evaluate_group(truth, group, iou_type, n_objects, curves[iou_type])
    return LvisResult(
        protocol=protocol,
        n_images=len(truth.image_ids),
        n_instances=sum(category.n_instances for category in truth.categories),
        n_predictions=len(predictions),
        n_over_limit=n_over_limit,
        n_unjudged=len(predictions) - n_over_limit - int(n_judged.sum()),
        metrics={
            iou_type: _metrics(truth.categories, n_judged, own) for iou_type, own in curves.items()
        },
        categories=_category_results(truth.categories, n_judged.tolist(), curves),
    )


def _part_of_list(
    predictions: Sequence[Prediction],
    truth: GroundTruth,
    iou_types: Sequence[IouType],
    protocol: Protocol,
) -> Iterator[tuple[int, PredictionColumns]]:
    """Yield how many are over the limit, and the rest as far as it is judged, as one part."""
    columns = PredictionColumns.from_predictions(predictions, iou_types)
    check_columns(columns, truth, "predictions[{}]")
    kept = protocol.kept(columns.image_id, columns.category_id, columns.score)
    yield int((~kept).sum()), columns.take(_judged(truth, columns, kept))


def _parts_of_shards(
    shards: PredictionShards,
    truth: GroundTruth,
    iou_types: Sequence[IouType],
    protocol: Protocol,
) -> Iterator[tuple[int, PredictionColumns]]:
    """The same with one part for each bucket, which holds all of its categories."""
    over_limit = shards.over_limit(protocol.max_detections) if protocol.per == "image" else None
    for number in range(shards.n_buckets):
        columns = shards.bucket(number, iou_types)
        check_columns(columns, truth, f"prediction {{}} in {shards.folder}")
        if over_limit is None:
            kept = protocol.kept(columns.image_id, columns.category_id, columns.score)
        else:
            kept = ~contains(over_limit, columns.position)
        part = columns.take(_judged(truth, columns, kept))
        # Not held while the part is computed.
        del columns
        yield int((~kept).sum()), part


def _judged(
    truth: GroundTruth, columns: PredictionColumns, kept: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the rows that are kept and judged, by category and then highest score first.

    Equal scores are sorted by image, and in an image as they were predicted.
    """
    pair = truth.pairs(columns.image_id, columns.category_id)
    rows = np.flatnonzero(kept & contains(truth.judged_pairs, pair))
    order = np.lexsort((columns.image_id[rows], -columns.score[rows], columns.category_id[rows]))
    ordered: NDArray[np.int64] = rows[order]
    return ordered


def _groups(columns: PredictionColumns) -> Iterator[PredictionColumns]:
    """Yield whole categories, several at a time if they are small."""
    bounds = run_bounds(columns.category_id).tolist()
    begin = 0
    for start, stop in itertools.pairwise(bounds):
        if stop - begin > _ROWS_TOGETHER and start > begin:
            yield columns.take(np.arange(begin, start))
            begin = start
    if begin < len(columns):
        yield columns.take(np.arange(begin, len(columns)))


def _evaluate_group(
    truth: GroundTruth,
    predictions: PredictionColumns,
    iou_type: IouType,
    n_objects: NDArray[np.int64],
    curves: Curves,
) -> None:
    """Fill in the curves of the categories of some predictions, which are sorted."""
    pair = truth.pairs(predictions.image_id, predictions.category_id)
    # LVIS's own evaluation leaves out empty boxes and masks, instead of counting them as wrong.
    if iou_type == "bbox":
        assert predictions.bbox_xywh is not None, "collected for this IoU type"
        areas = predictions.bbox_xywh[:, 2] * predictions.bbox_xywh[:, 3]
        candidates = box_candidates(truth, predictions.bbox_xywh, pair)
    else:
        areas = mask_areas(predictions.rles())
        candidates = mask_candidates(truth, predictions, areas, pair)
    matches = match(candidates, truth.objects.pair, truth.objects.area)
    is_blamed = is_in_range(areas) & ~contains(truth.unfinished_pairs, pair)[:, None]
    is_blamed &= (areas > 0)[:, None]
    bounds = run_bounds(predictions.category_id)
    matched_bounds = np.searchsorted(matches.prediction, bounds)
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        category = int(pair[start] % len(truth.categories))
        if not n_objects[category].any():
            continue
        matched = slice(matched_bounds[index], matched_bounds[index + 1])
        own = Matches(matches.prediction[matched] - start, matches.outcome[matched])
        curves.put(category, n_objects[category], is_blamed[start:stop], own)


def _objects_in_range(truth: GroundTruth) -> NDArray[np.int64]:
    """Count each category's objects in each range of areas, shape (categories, ranges)."""
    counts = np.zeros((len(truth.categories), len(AREA_LABELS)), dtype=np.int64)
    category = truth.objects.pair % len(truth.categories)
    np.add.at(counts, category, is_in_range(truth.objects.area))
    return counts


def _metrics(
    categories: Sequence[EvaluatedCategory], n_predictions: NDArray[np.int64], curves: Curves
) -> LvisMetrics:
    """Average over categories as LVIS does: over all defined entries at once."""
    # Shapes (category, IoU threshold, recall threshold, area range) and without recall thresholds.
    precision, recall = curves.precision, curves.recall
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
        ap_predicted=_mean_of_defined(precision[n_predictions > 0, ..., area["all"]]),
    )


def _category_results(
    categories: Sequence[EvaluatedCategory],
    n_predictions: Sequence[int],
    curves: Mapping[IouType, Curves],
) -> tuple[CategoryResult, ...]:
    """Average over everything but categories, of objects of any size."""
    means: dict[str, dict[IouType, list[float]]] = {"ap": {}, "ap50": {}, "ar": {}}
    for iou_type, own in curves.items():
        means["ap"][iou_type] = own.precision[..., 0].mean((1, 2)).tolist()
        means["ap50"][iou_type] = own.precision[:, _AT_50, :, 0].mean(1).tolist()
        means["ar"][iou_type] = own.recall[..., 0].mean(1).tolist()

    def of_category(index: int, name: str) -> dict[str, float | None]:
        # All entries of a category without an object are -1.
        is_defined = categories[index].n_instances > 0
        return {key: own[index] if is_defined else None for key, own in means[name].items()}

    return tuple(
        CategoryResult(
            category_id=category.category_id,
            name=category.name,
            frequency=category.frequency,
            n_images=category.n_images,
            n_instances=category.n_instances,
            n_predictions=n_predictions[index],
            ap=of_category(index, "ap"),
            ap50=of_category(index, "ap50"),
            ar=of_category(index, "ar"),
        )
        for index, category in enumerate(categories)
    )


def _mean_of_defined(values: NDArray[np.float64]) -> float | None:
    """Average all entries but those of -1, which stand for nothing to find."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
