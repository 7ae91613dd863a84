"""Match predictions with objects as LVIS does, all images and thresholds at once.

In one image and category, predictions take turns, highest score first: each takes the free object
that it overlaps most. LVIS repeats this for ten IoU thresholds and four ranges of area. Turns
depend on each other only within an image and a category, so the first turns of all of them are one
computation on arrays, for all thresholds and ranges; then the second turns, and so on. Predictions
that overlap nothing by half have no turn.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsgal_train.evaluation.overlaps import Candidates
from bsgal_train.evaluation.run_lengths import run_bounds

__all__ = [
    "AREA_LABELS",
    "IGNORED",
    "IOU_THRESHOLDS",
    "TRUE",
    "UNMATCHED",
    "Matches",
    "is_in_range",
    "match",
]

IOU_THRESHOLDS: npt.NDArray[np.float64] = np.linspace(0.5, 0.95, 10)

AREA_LABELS = ("all", "small", "medium", "large")
# Square pixels, both ends included.
_AREA_RANGES = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])

UNMATCHED, TRUE, IGNORED = range(3)
"""What became of a prediction: found nothing, found an object of the range of areas, found another
object, for which it is neither praised nor blamed."""

# So many turns are computed together: what they take fits into a processor's cache.
_TURNS_TOGETHER = 4096


@dataclass(frozen=True, eq=False, slots=True)
class Matches:
    """What became of the M predictions that overlap an object by enough.

    Attributes:
        prediction: int64 (M,), ascending rows of the predictions.
        outcome: uint8 (M, thresholds, ranges): UNMATCHED, TRUE or IGNORED.
    """

    prediction: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.uint8]


def is_in_range(area: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Say for areas (N,) in which ranges they are, shape (N, ranges)."""
    inside: npt.NDArray[np.bool_] = (area[:, None] >= _AREA_RANGES[:, 0]) & (
        area[:, None] <= _AREA_RANGES[:, 1]
    )
    return inside


def match(
    candidates: Candidates,
    object_pair: npt.NDArray[np.int64],
    object_area: npt.NDArray[np.float64],
) -> Matches:
    """Match.

    Args:
        candidates: Overlapping predictions and objects; in one image and category, predictions
            with a lower row take their turn earlier.
        object_pair: Image and category of each object that candidates name.
        object_area: Its area.
    """
    n_thresholds, n_ranges = len(IOU_THRESHOLDS), len(AREA_LABELS)
    if not len(candidates.prediction):
        none = np.zeros((0, n_thresholds, n_ranges), dtype=np.uint8)
        return Matches(prediction=candidates.prediction, outcome=none)
    found, first = np.unique(candidates.prediction, return_index=True)
    turn = _turns(object_pair[candidates.object[first]])
    outcome = np.zeros((len(found), n_thresholds, n_ranges), dtype=np.uint8)
    objects, candidate_object = np.unique(candidates.object, return_inverse=True)
    is_counted = is_in_range(object_area[objects])
    is_taken = np.zeros((len(objects), n_thresholds, n_ranges), dtype=np.bool_)
    # By turn, then by prediction; of one prediction the largest overlap last, and of equal
    # overlaps the later object, which is the one that LVIS takes.
    turn_of = np.repeat(turn, np.diff(first, append=len(candidates.prediction)))
    order = np.lexsort((candidate_object, candidates.iou, candidates.prediction, turn_of))
    candidate_object, iou = candidate_object[order], candidates.iou[order]
    starts = run_bounds(candidates.prediction[order])
    by_turn = np.argsort(turn, kind="stable")
    for begin, end in _blocks(turn[by_turn]):
        block = slice(starts[begin], starts[end])
        own = candidate_object[block]
        is_free = (iou[block, None] >= IOU_THRESHOLDS)[:, :, None] & ~is_taken[own]
        # Objects outside the range of areas are taken only if no other is left.
        rank = np.arange(1, len(own) + 1, dtype=np.int32)
        preference = rank[:, None] + np.where(is_counted[own], np.int32(len(own)), np.int32(0))
        best = np.maximum.reduceat(
            is_free * preference[:, None, :], starts[begin:end] - starts[begin], axis=0
        )
        prediction, threshold, area_range = np.nonzero(best)
        chosen = best[prediction, threshold, area_range] - 1
        is_true = chosen >= len(own)
        is_taken[own[chosen % len(own)], threshold, area_range] = True
        outcome[by_turn[begin + prediction], threshold, area_range] = np.where(
            is_true, TRUE, IGNORED
        )
    return Matches(prediction=found, outcome=outcome)


def _turns(pair: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count for each prediction how many before it have the same pair."""
    order = np.argsort(pair, kind="stable")
    bounds = run_bounds(pair[order])
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order)) - np.repeat(bounds[:-1], np.diff(bounds))
    return turn


def _blocks(turn: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Split ascending turns where they change, and into parts of bounded length."""
    bounds = run_bounds(turn).tolist()
    return [
        (begin, min(begin + _TURNS_TOGETHER, stop))
        for start, stop in itertools.pairwise(bounds)
        for begin in range(start, stop, _TURNS_TOGETHER)
    ]
