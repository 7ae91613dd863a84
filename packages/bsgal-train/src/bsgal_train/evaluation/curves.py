"""Turn matches into precision at given recalls, as LVIS does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsgal_train.evaluation.matching import AREA_LABELS, IOU_THRESHOLDS, TRUE, UNMATCHED, Matches

__all__ = ["Curves"]

_RECALL_THRESHOLDS: npt.NDArray[np.float64] = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False, slots=True)
class Curves:
    """Precision and recall of K categories; -1 where a range of areas has no object.

    Attributes:
        precision: float64 (K, IoU thresholds, recall thresholds, ranges of areas).
        recall: float64 (K, IoU thresholds, ranges of areas).
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]

    @classmethod
    def without_predictions(cls, n_objects: npt.NDArray[np.int64]) -> Curves:
        """Make the curves of categories of which nothing was predicted.

        Args:
            n_objects: (K, ranges), objects in each range.
        """
        nothing = np.where(n_objects > 0, 0.0, -1.0)
        shape = (len(n_objects), len(IOU_THRESHOLDS), len(_RECALL_THRESHOLDS), len(AREA_LABELS))
        return cls(
            precision=np.broadcast_to(nothing[:, None, None], shape).copy(),
            recall=np.broadcast_to(nothing[:, None], (*shape[:2], shape[3])).copy(),
        )

    def put(
        self,
        category: int,
        n_objects: npt.NDArray[np.int64],
        is_blamed: npt.NDArray[np.bool_],
        matches: Matches,
    ) -> None:
        """Fill in one category.

        Args:
            category: Its position.
            n_objects: (ranges,), its objects in each range.
            is_blamed: (N, ranges), whether a prediction counts as wrong if it matches nothing; N
                predictions, highest score first.
            matches: What matched, by rows among the N.
        """
        is_true = matches.outcome == TRUE
        n_true = np.cumsum(is_true, axis=0, dtype=np.int32)
        # How many count up to each prediction that may match: as if nothing matched, and then what
        # matching changes. Precision is highest where an object is found, so other places need
        # not be looked at.
        blamed = is_blamed[matches.prediction][:, None, :]
        change = np.where(matches.outcome == UNMATCHED, 0, is_true.astype(np.int8) - blamed)
        n_counted = np.cumsum(change, axis=0, dtype=np.int32)
        n_counted += np.cumsum(is_blamed, axis=0, dtype=np.int32)[matches.prediction][:, None, :]
        row, threshold, area_range = np.nonzero(is_true)
        n_found = n_true[row, threshold, area_range]
        n_most = int(n_objects.max())
        best = np.zeros((n_most, *is_true.shape[1:]))
        best[n_found - 1, threshold, area_range] = n_found / n_counted[row, threshold, area_range]
        # At a recall the best precision counts that is reached there or at a higher one.
        best = np.maximum.accumulate(best[::-1], axis=0)[::-1]
        for index, n_own in enumerate(n_objects.tolist()):
            if not n_own:
                continue
            needed = np.searchsorted(np.arange(1, n_own + 1) / n_own, _RECALL_THRESHOLDS)
            self.precision[category, :, :, index] = best[needed, :, index].T
            self.recall[category, :, index] = is_true[:, :, index].sum(0) / n_own
