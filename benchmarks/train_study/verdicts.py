"""What an arm's verdicts find of the defects: by draw, and by instance of the pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from train_study.pools import StudyPool

__all__ = ["finally_bad", "of_draws", "of_instances", "recall_where_few_are_lost", "share"]

GROUPS = ("r", "c", "f")


def of_draws(log: Sequence[Mapping[str, Any]], pool: StudyPool) -> dict[str, float]:
    """Return what came of the decisions that a run logged, each draw counted.

    Args:
        log: rows of the decision log with `instance_id`, `verdict` and `contribution`.
        pool: of the run.
    """
    if not log:
        return {}
    # What there is too little evidence about is trained on: a defect among it is missed.
    verdicts = [(row["instance_id"], row["verdict"] in ("reject", "nonfinite")) for row in log]
    rejected = [one for one, is_rejected in verdicts if is_rejected]
    return {
        "accepted": 1 - len(rejected) / len(log),
        "defect_precision": share(one in pool.planted for one in rejected),
        **_shares(verdicts, pool, "defect_recall", "recall_{}", "good_lost"),
        "defect_auc": _ranked_below(log, pool),
    }


def of_instances(bad: Collection[str], pool: StudyPool) -> dict[str, float]:
    """Return what came of the pool's instances, each counted once, those never drawn as good.

    Args:
        bad: ids of those that are finally judged bad, or left out.
        pool: which instances there are.
    """
    verdicts = [(one, one in bad) for one in pool.groups]
    return _shares(verdicts, pool, "instance_recall", "instance_recall_{}", "instance_good_lost")


def finally_bad(log: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the instances whose last verdict in a run is a rejection."""
    last = {row["instance_id"]: row["verdict"] for row in log}
    return {one for one, verdict in last.items() if verdict == "reject"}


def recall_where_few_are_lost(
    p_values: Mapping[str, float], pool: StudyPool, lost: float = 0.03
) -> float:
    """Return the share of the spoilt instances below the p-value that loses few of the good.

    Whatever level a run was judged at: what the order of the p-values is worth.

    Args:
        p_values: by id; NaN of what was not looked at, which is never found.
        pool: which instances there are, and which are spoilt.
        lost: share of the good ones below the threshold.
    """
    good, spoilt = (
        np.nan_to_num(
            [
                p_values.get(one, np.nan)
                for one in pool.groups
                if (one in pool.planted) is is_spoilt
            ],
            nan=1.0,
        )
        for is_spoilt in (False, True)
    )
    if not len(good) or not len(spoilt):
        return math.nan
    return float((spoilt < np.quantile(good, lost)).mean())


def share(values: Iterable[object]) -> float:
    """Return the share of true values; NaN of none."""
    listed = [bool(value) for value in values]
    return sum(listed) / len(listed) if listed else math.nan


def _shares(
    verdicts: Sequence[tuple[str, bool]], pool: StudyPool, recall: str, of_kind: str, lost: str
) -> dict[str, float]:
    """Return recall, recall by kind, and the lost share of good ones, in all and by group."""

    def bad(is_meant: Callable[[str], bool]) -> float:
        return share(is_bad for one, is_bad in verdicts if is_meant(one))

    found = {recall: bad(lambda one: one in pool.planted)}
    for kind in pool.kinds:
        found[of_kind.format(kind)] = bad(lambda one, kind=kind: pool.planted.get(one) == kind)
    found[lost] = bad(lambda one: one not in pool.planted)
    for group in GROUPS:
        found[f"{lost}_{group}"] = bad(
            lambda one, group=group: one not in pool.planted and pool.groups.get(one) == group
        )
    return found


def _ranked_below(log: Sequence[Mapping[str, Any]], pool: StudyPool) -> float:
    """Return the share of pairs in which a spoilt instance scores below a good one; ties half."""
    from scipy.stats import mannwhitneyu

    scored = [row for row in log if row["contribution"] is not None]
    good, spoilt = (
        [row["contribution"] for row in scored if (row["instance_id"] in pool.planted) is is_spoilt]
        for is_spoilt in (False, True)
    )
    if not good or not spoilt:
        return math.nan
    return float(mannwhitneyu(good, spoilt).statistic) / (len(good) * len(spoilt))
