"""Hold the evidence of a unit against that of real ones: class, then group, then all.

The nonconformity score of a unit with evidence z of one source, mean of n looks, is

    a = (z - w (S + k M)) / sqrt(V (f(n) + w)),    w = 1 / (m + k):

its distance from the mean of the m other units of its class in the bag, whose evidence adds up to
S, shrunk to the mean M of its group's real units (itself shrunk to that of all), in the units of
the error of that prediction. k is right where the classes' means spread with 1/k of the variance V
within a class. f(n) is the variance of the mean of n looks, in units of V, by the decomposition of
V into that between units and that between the looks at one: so real units with few looks serve
those with many.

The bag is the real units of the group and the unit that is judged. Every one of them is scored
against the others of its class, so that the score does not say which of them is judged (full
conformal prediction; Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005,
section 2.2; by group, "Mondrian": section 4.5).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ._pooled_ranks import SortedGroups, split
from ._real_window import RealWindow

Combination = Literal["max", "bonferroni", "cauchy"]
"""How the sources' evidence becomes one p-value, see `EvidenceBook`."""

# How many real units an assumption weighs as much as: that the mean of a group is that of all;
# that a group varies like all; that a second look says nothing new.
_PRIOR_MEAN = 2
_PRIOR = 16
_LEAST = 1e-6
_BLOCK = 2048


class Calibration:
    """The evidence of real units at one time, ready to judge others by.

    Args:
        window: The real units; must not change meanwhile.
        group_of_class: (n_classes,).
        shrinkage: k, by source, (n_sources,).
        pooling: How many real units of the group the other groups weigh as much as.
        combine: The rule for several sources.
    """

    def __init__(
        self,
        window: RealWindow,
        group_of_class: NDArray[np.int32],
        shrinkage: NDArray[np.float64],
        pooling: float,
        combine: Combination,
    ) -> None:
        self._groups, self._k = group_of_class, shrinkage
        self._pooling, self._combine = pooling, combine
        # Source by source, (n_sources, n_classes, size): sums along the last axis are fast.
        counts = _by_source(window.counts)
        self._there = counts > 0
        self._means = np.where(self._there, _by_source(window.means), 0.0).astype(np.float64)
        self._n_class, self._sums = self._there.sum(axis=2), self._means.sum(axis=2)
        self._centre = self._group_means()[:, group_of_class]
        weights, distances = self._distances(
            self._means,
            self._sums[..., None] - self._means,
            self._n_class[..., None] - self._there,
            self._centre[..., None],
        )
        squares = np.where(self._there, np.square(distances) / (1 + weights), 0.0)
        self._variances = self._group_variances(squares.sum(axis=2))[:, group_of_class]
        total = squares.sum(axis=(1, 2))
        self._between, self._within = self._decompose(total, counts, _by_source(window.within))
        self._of_looks = self._looks_factor(counts)
        self._scores = distances / np.sqrt(self._variances[..., None] * (self._of_looks + weights))
        self._ordered = cache(self._sort)

    def judge(
        self,
        classes: NDArray[np.int32],
        slots: NDArray[np.intp],
        means: NDArray[np.float32],
        counts: NDArray[np.uint8],
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Judge units.

        Args:
            classes: Their class indices, (m,).
            slots: Where they are in the window themselves, -1 for nowhere, (m,).
            means: Evidence, large is bad, (m, n_sources).
            counts: Over how many looks; 0 where a source has said nothing, (m, n_sources).

        Returns:
            Their scores by source, (m, n_sources); p-values, (m,), NaN without any evidence; and
            the smallest p-values that they could have got, (m,).
        """
        scores = np.full(means.shape, np.nan, np.float32)
        p_values, smallest = np.full(len(classes), np.nan), np.ones(len(classes))
        patterns = (counts > 0) @ (1 << np.arange(counts.shape[1]))
        for pattern in np.unique(patterns[patterns > 0]):
            sources = tuple(np.flatnonzero(pattern >> np.arange(counts.shape[1]) & 1).tolist())
            rows = np.flatnonzero(patterns == pattern)
            for start in range(0, len(rows), _BLOCK):
                here = rows[start : start + _BLOCK]
                scores[here], p_values[here], smallest[here] = self._judge_block(
                    classes[here], slots[here], means[here], counts[here], sources
                )
        return scores, p_values, smallest

    def _judge_block(
        self,
        classes: NDArray[np.int32],
        slots: NDArray[np.intp],
        means: NDArray[np.float32],
        counts: NDArray[np.uint8],
        sources: tuple[int, ...],
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
        """Judge units of which the same sources have spoken."""
        counts = counts.T
        values = np.where(counts > 0, means.T, np.nan).astype(np.float64)
        # (m, size): a unit that is in the window meets a bag without itself.
        kept = slots[:, None] != np.arange(self._there.shape[2])
        there, real = self._there[:, classes] & kept, self._means[:, classes]
        n_class, sums = there.sum(axis=2), (real * kept).sum(axis=2)
        centre, variances = self._centre[:, classes], self._variances[:, classes]
        weights, distances = self._distances(values, sums, n_class, centre)
        scores = distances / np.sqrt(variances * (self._looks_factor(counts) + weights))
        # The real units of the class meet the judged one, those of other classes do not.
        _, theirs = self._distances(
            real, (sums + values)[..., None] - real, n_class[..., None], centre[..., None]
        )
        theirs /= np.sqrt(variances[..., None] * (self._of_looks[:, classes] + weights[..., None]))
        columns = [sources] if self._combine == "max" else [(source,) for source in sources]
        found = [self._rank(classes, kept, scores, theirs, column) for column in columns]
        p_values, smallest = (np.stack(one, axis=-1) for one in zip(*found, strict=True))
        return scores.T, self._combined(p_values), self._combined(smallest)

    def _rank(
        self,
        classes: NDArray[np.int32],
        kept: NDArray[np.bool_],
        scores: NDArray[np.float64],
        theirs: NDArray[np.float64],
        sources: tuple[int, ...],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rank units by the largest score of some sources among real units that have them all."""
        chosen = list(sources)
        # Where all values are equal, rounding must not tell the judged one from the others.
        bounds = scores[chosen].max(axis=0) - 1e-9
        ordered, groups = self._ordered(sources), self._groups[classes]
        counts = ordered.sizes[:, None] - ordered.below(bounds, ties=0)
        as_bad, n, others, n_others = split(counts, ordered.sizes, groups)
        complete = self._there[chosen][:, classes].all(axis=0)
        before = self._scores[chosen][:, classes].max(axis=0) >= bounds[:, None]
        after = kept & (theirs[chosen].max(axis=0) >= bounds[:, None])
        as_bad += (complete & after).sum(axis=1) - (complete & before).sum(axis=1)
        n = n - (complete & ~kept).sum(axis=1)
        k = np.minimum(self._pooling, n_others)
        share = others / np.maximum(n_others, 1)
        return (1 + as_bad + k * share) / (1 + n + k), 1 / (1 + n + k)

    def _sort(self, sources: tuple[int, ...]) -> SortedGroups:
        chosen = list(sources)
        complete = self._there[chosen].all(axis=0)
        largest = np.where(complete, self._scores[chosen].max(axis=0), np.nan)
        groups = np.repeat(self._groups, largest.shape[1])
        return SortedGroups(largest.ravel(), groups, int(self._groups.max()) + 1)

    def _combined(self, p_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Combine along the last axis; of "max" there is one column only."""
        if self._combine == "cauchy":
            # Liu & Xie, Cauchy combination test, JASA 2020, equation 1.
            statistic = np.tan((0.5 - p_values) * np.pi).mean(axis=-1)
            combined: NDArray[np.float64] = 0.5 - np.arctan(statistic) / np.pi
        else:
            combined = np.minimum(1.0, p_values.min(axis=-1) * p_values.shape[-1])
        return combined

    def _distances(
        self,
        values: NDArray[np.float64],
        sums_of_others: NDArray[np.float64],
        n_others: NDArray[np.intp],
        centre: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return w and the distance from the prediction."""
        k = _like(self._k, values)
        weights = 1.0 / (n_others.astype(np.float64) + k)
        return weights, values - weights * (sums_of_others + k * centre)

    def _group_means(self) -> NDArray[np.float64]:
        sums, n = self._by_group(self._sums), self._by_group(self._n_class)
        of_all = sums.sum(axis=1) / np.maximum(n.sum(axis=1), 1)
        means: NDArray[np.float64] = (sums + _PRIOR_MEAN * of_all[:, None]) / (n + _PRIOR_MEAN)
        return means

    def _group_variances(self, squares: NDArray[np.float64]) -> NDArray[np.float64]:
        sums, n = self._by_group(squares), self._by_group(self._n_class)
        # That of normal scores is 1.
        of_all = (sums.sum(axis=1) + 1.0) / (n.sum(axis=1) + 1.0)
        variances: NDArray[np.float64] = (sums + _PRIOR * of_all[:, None]) / (n + _PRIOR)
        return np.maximum(variances, _LEAST)

    def _by_group(self, per_class: NDArray[np.float64] | NDArray[np.intp]) -> NDArray[np.float64]:
        """Sum over the classes of each group, (n_sources, n_groups)."""
        result: NDArray[np.float64] = per_class @ np.eye(int(self._groups.max()) + 1)[self._groups]
        return result

    def _decompose(
        self,
        squares: NDArray[np.float64],
        counts: NDArray[np.uint8],
        within: NDArray[np.float32],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the variance between units, and within one look, in units of V, (n_sources,)."""
        n = np.maximum(self._n_class.sum(axis=1), 1)
        repeated = ~np.isnan(within)
        of_one = np.where(repeated, within, 0.0).sum(axis=(1, 2))
        of_one /= repeated.sum(axis=(1, 2)) + _PRIOR
        inverse = (self._there / np.maximum(counts, 1.0)).sum(axis=(1, 2)) / n
        share = np.minimum(of_one * inverse / np.maximum(squares / n, _LEAST), 0.95)
        return 1.0 - share, share / np.maximum(inverse, _LEAST)

    def _looks_factor(self, counts: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return f(n); 1 at the real units' number of looks (its harmonic mean)."""
        between, within = _like(self._between, counts), _like(self._within, counts)
        factor: NDArray[np.float64] = between + within / np.maximum(counts, 1)
        return factor


def _like(per_source: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Add axes, so that it goes with (n_sources, ...)."""
    return per_source.reshape(-1, *[1] * (values.ndim - 1))


def _by_source(per_slot: NDArray[Any]) -> NDArray[Any]:
    """Copy (n_classes, size, n_sources) to (n_sources, n_classes, size)."""
    return np.ascontiguousarray(np.moveaxis(per_slot, 2, 0))
