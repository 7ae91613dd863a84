"""Read a decision log for a report: who was accepted, when, with what score.

A log of a long run has millions of rows, so everything is computed on columns, and only what is
shown becomes an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bsgal_train.inspect.report.charts import MAX_DOTS
from bsgal_train.inspect.report.content import JudgedStep, Line, ScoreHistogram

__all__ = ["GROUP_NAMES", "NOTES", "InstanceVerdicts", "Verdicts"]

NOTES = {
    "batch": "One verdict covers all instances pasted in a training step, so an instance shares "
    "the score of its companions.",
    "image": "One verdict covers all instances pasted into an image.",
    "instance": "Every pasted instance has a verdict of its own.",
    "evidence": "Every pasted instance has a verdict of its own. Its score is a p-value: the share "
    "of real objects that look as bad or worse.",
}
"""What a verdict covers, by granularity; `evidence` is that of instances by evidence."""

GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
_N_PERIODS = 40
_N_BINS = 30
# Outliers must not squeeze a histogram into one bin.
_SHOWN_QUANTILES = (0.005, 0.995)
_UNIT_COLUMNS = {
    "batch": ["step"],
    "image": ["step", "image_id"],
    "instance": ["step", "image_id", "instance_id"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceVerdicts:
    """What was decided about one instance over a run; `contribution` is the mean."""

    instance_id: str
    frequency: str
    contribution: float
    times_judged: int
    times_accepted: int


class Verdicts:
    """The rows of a decision log that were accepted or rejected.

    Args:
        decisions: from `read_decisions`.
    """

    def __init__(self, decisions: pa.Table) -> None:
        judged = pc.is_in(decisions["verdict"], pa.array(["accept", "reject"]))
        self._table = decisions.filter(judged)
        self._step = self._column("step", np.int64)
        self._accepted = np.asarray(pc.equal(self._table["verdict"], "accept"), dtype=bool)
        self._contribution = self._column("contribution", np.float64)
        self._threshold = self._column("threshold", np.float64)
        self._frequency = np.asarray(self._table["frequency"].to_numpy(zero_copy_only=False))

    def __len__(self) -> int:
        return len(self._step)

    @property
    def has_scores(self) -> bool:
        """Say whether any verdict follows from a score."""
        return bool(np.isfinite(self._contribution).any())

    @property
    def granularity(self) -> str:
        """Give what shares a verdict, empty without verdicts."""
        return str(self._table["granularity"][0].as_py()) if len(self) else ""

    def acceptance(self) -> list[Line]:
        """Give the accepted share over time of each group that has verdicts, and of all."""
        if not len(self):
            return []
        first, last = int(self._step[0]), int(self._step.max())
        n_periods = min(_N_PERIODS, last - first + 1)
        edges = np.linspace(first, last + 1, n_periods + 1)
        period = np.clip(np.searchsorted(edges, self._step, side="right") - 1, 0, n_periods - 1)
        centres = (edges[:-1] + edges[1:] - 1) / 2
        groups = [("all", "ink", np.ones(len(self), dtype=bool))]
        groups += [(name, key, self._frequency == key) for key, name in GROUP_NAMES.items()]
        lines = []
        for name, style, members in groups:
            n_judged = np.bincount(period[members], minlength=n_periods)
            n_accepted = np.bincount(period[members & self._accepted], minlength=n_periods)
            points = [
                (float(centres[i]), float(n_accepted[i] / n_judged[i]))
                for i in np.flatnonzero(n_judged)
            ]
            if points:
                lines.append(Line(name=name, style=style, points=points))
        return lines

    def histograms(self) -> list[ScoreHistogram]:
        """Give the scores of each group that has some, over one common range."""
        finite = np.isfinite(self._contribution)
        if not finite.any():
            return []
        low, high = np.quantile(self._contribution[finite], _SHOWN_QUANTILES)
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, _N_BINS + 1)
        bins = np.clip(np.searchsorted(edges, self._contribution, side="right") - 1, 0, _N_BINS - 1)
        found = []
        for key, name in GROUP_NAMES.items():
            members = finite & (self._frequency == key)
            if members.any():
                accepted, rejected = (
                    np.bincount(bins[members & chosen], minlength=_N_BINS).tolist()
                    for chosen in (self._accepted, ~self._accepted)
                )
                found.append(
                    ScoreHistogram(
                        title=f"{name}: {members.sum()} scores",
                        edges=edges.tolist(),
                        n_accepted=accepted,
                        n_rejected=rejected,
                        threshold=float(self._threshold[members].mean()),
                    )
                )
        return found

    def over_time(self) -> list[JudgedStep]:
        """Give one entry for each verdict, evenly thinned to what a chart shows."""
        if not len(self):
            return []
        unit = self._table.select(_UNIT_COLUMNS[self.granularity])
        is_new = np.arange(len(self)) == 0
        for column in unit.columns:
            codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
            is_new[1:] |= codes[1:] != codes[:-1]
        rows = np.flatnonzero(is_new & np.isfinite(self._contribution))
        return [
            JudgedStep(
                step=int(self._step[row]),
                contribution=float(self._contribution[row]),
                threshold=float(self._threshold[row]),
                accepted=bool(self._accepted[row]),
            )
            for row in rows[:: max(1, -(-len(rows) // MAX_DOTS))]
        ]

    def of_categories(self) -> dict[int, tuple[int, int]]:
        """Give for each category id how often its instances were judged, and accepted."""
        ids = self._column("category_id", np.int64)
        known, position = np.unique(ids, return_inverse=True)
        n_judged = np.bincount(position, minlength=len(known))
        n_accepted = np.bincount(position[self._accepted], minlength=len(known))
        return {
            int(category): (int(judged), int(accepted))
            for category, judged, accepted in zip(known, n_judged, n_accepted, strict=True)
        }

    def best_accepted(self, n: int) -> list[InstanceVerdicts]:
        """Give the instances accepted every time, highest mean scores first."""
        return self._ranked(n, accepted=True)

    def worst_rejected(self, n: int) -> list[InstanceVerdicts]:
        """Give the instances rejected at least once, lowest mean scores first."""
        return self._ranked(n, accepted=False)

    def _ranked(self, n: int, *, accepted: bool) -> list[InstanceVerdicts]:
        if not self.has_scores:
            return []
        encoded = self._table["instance_id"].combine_chunks().dictionary_encode()
        position = encoded.indices.to_numpy()
        size = len(encoded.dictionary)
        scored = np.isfinite(self._contribution)
        n_scored = np.bincount(position[scored], minlength=size)
        sums = np.bincount(position[scored], weights=self._contribution[scored], minlength=size)
        means = np.divide(sums, n_scored, out=np.full(size, np.nan), where=n_scored > 0)
        n_judged = np.bincount(position, minlength=size)
        n_accepted = np.bincount(position[self._accepted], minlength=size)
        first_row = np.full(size, len(self))
        np.minimum.at(first_row, position, np.arange(len(self)))
        chosen = np.flatnonzero(((n_accepted == n_judged) == accepted) & np.isfinite(means))
        order = np.argsort(-means[chosen] if accepted else means[chosen], kind="stable")
        return [
            InstanceVerdicts(
                instance_id=encoded.dictionary[int(i)].as_py(),
                frequency=str(self._frequency[first_row[i]]),
                contribution=float(means[i]),
                times_judged=int(n_judged[i]),
                times_accepted=int(n_accepted[i]),
            )
            for i in chosen[order[:n]]
        ]

    def _column(self, name: str, dtype: Any) -> npt.NDArray[Any]:
        # A missing score becomes NaN.
        return np.asarray(self._table[name].to_numpy(zero_copy_only=False), dtype=dtype)
