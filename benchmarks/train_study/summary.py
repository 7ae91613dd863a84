"""Means, spread and tests over the seeds of each arm, and how well defects are found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

METRICS = ("ap", "apr", "apc", "apf")


def summaries(runs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per arm: mean and spread over seeds, and paired tests of APr."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    by_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in arms}
    for arm, own in by_arm.items():
        row: dict[str, Any] = {"arm": arm, "seed": "all", "n_seeds": len(own)}
        names = [name for name in own[0] if name not in ("arm", "seed")]
        for name in names:
            values = [run[name] for run in own if not math.isnan(run.get(name, math.nan))]
            if values:
                row[name] = statistics.mean(values)
                row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        for other in ("none", "paste_all", "paste_random"):
            if other in by_arm and other != arm and len(own) > 1:
                difference, p = paired(own, by_arm[other], "apr")
                row[f"apr_minus_{other}"] = difference
                row[f"apr_p_{other}"] = p
        yield row


def paired(
    own: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], name: str
) -> tuple[float, float]:
    """Return the mean difference over the seeds of both arms, and its paired t-test's p."""
    from scipy.stats import ttest_rel

    by_seed = {run["seed"]: run[name] for run in other}
    pairs = [(run[name], by_seed[run["seed"]]) for run in own if run["seed"] in by_seed]
    differences = [a - b for a, b in pairs]
    if len(set(differences)) == 1:
        # The test divides by their spread.
        return differences[0], 1.0 if differences[0] == 0 else 0.0
    a, b = zip(*pairs, strict=True)
    return statistics.mean(differences), float(ttest_rel(a, b).pvalue)


def headline_of(rows: Sequence[dict[str, Any]]) -> dict[str, float | int | str]:
    """Return the headline numbers, AP in per cent."""
    headline: dict[str, float | int | str] = {}
    for row in rows:
        if row["seed"] != "all":
            continue
        arm = row["arm"]
        for name in METRICS:
            if name in row:
                headline[f"{name}_{arm}"] = round(100 * row[name], 2)
                headline[f"{name}_{arm}_std"] = round(100 * row[f"{name}_std"], 2)
        for name in ("defect_auc", "defect_precision", "defect_recall", "accepted"):
            if name in row:
                headline[f"{name}_{arm}"] = round(row[name], 3)
    return headline


def ranked_below(log: Sequence[dict[str, Any]]) -> float:
    """Return the share of pairs in which a spoilt instance scores below a good one; ties half."""
    from scipy.stats import mannwhitneyu

    scored = [row for row in log if row["contribution"] is not None]
    good, spoilt = (
        [row["contribution"] for row in scored if (row["defect"] is None) is is_good]
        for is_good in (True, False)
    )
    if not good or not spoilt:
        return math.nan
    return float(mannwhitneyu(good, spoilt).statistic) / (len(good) * len(spoilt))


def share(values: Any) -> float:
    """Return the share of true values; NaN of none."""
    listed = [bool(value) for value in values]
    return sum(listed) / len(listed) if listed else math.nan
