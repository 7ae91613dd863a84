"""Means, spread and tests over the seeds of each arm, and the share of the ceiling's gain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from train_study.arms import AGAINST, ARMS, BASE, CEILING, WALL

__all__ = ["METRICS", "headline_of", "holm", "paired", "recovered", "summaries"]

Run = dict[str, Any]

METRICS = ("ap", "apr", "apc", "apf")
COMPARED = ("ap", "apr")
CONFIDENCE = 0.95
N_BOOTSTRAP = 2000


def summaries(runs: Sequence[Run]) -> Iterator[Run]:
    """Yield one row per pool and arm: mean and spread over seeds, tests, and what is recovered.

    `<metric>_minus_<other>` is the mean difference over the seeds of both arms, and
    `<metric>_p_<other>` the p of a paired t-test, corrected by Holm's method for the number of arms
    compared with the other; `..._low_...` and `..._high_...` bound the difference such that all
    such intervals hold together with 95 % (Bonferroni). `<metric>_recovered` is the share of the
    gain of `paste_clean` over `paste_all`, with a bootstrap interval over the seeds.
    """
    for pool in dict.fromkeys(run["pool"] for run in runs):
        own = [run for run in runs if run["pool"] == pool]
        by_arm = {arm: [run for run in own if run["arm"] == arm] for arm in arms_of(own)}
        compared = comparisons(by_arm)
        for arm, of_arm in by_arm.items():
            row: Run = {"pool": pool, "arm": arm, "seed": "all", "n_seeds": len(of_arm)}
            for name in dict.fromkeys(name for run in of_arm for name in run):
                values = [run.get(name) for run in of_arm]
                numbers = [v for v in values if isinstance(v, float | int) and not math.isnan(v)]
                if name != "seed" and numbers:
                    row[name] = statistics.mean(numbers)
                    row[f"{name}_std"] = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
            yield row | compared[arm] | gains(by_arm, arm)


def arms_of(runs: Sequence[Run]) -> list[str]:
    """Return the arms of runs, in their order."""
    return list(dict.fromkeys(run["arm"] for run in runs))


def comparisons(by_arm: dict[str, list[Run]]) -> dict[str, Run]:
    """Return for each arm its paired differences to each arm of `AGAINST` that was run."""
    found: dict[str, Run] = {arm: {} for arm in by_arm}
    for other in AGAINST:
        for metric in COMPARED:
            pairs = {
                arm: differences(own, by_arm[other], metric)
                for arm, own in by_arm.items()
                if other in by_arm and arm != other
            }
            pairs = {arm: values for arm, values in pairs.items() if len(values) > 1}
            corrected = holm({arm: paired(values) for arm, values in pairs.items()})
            for arm, values in pairs.items():
                low, high = interval(values, n_compared=len(pairs))
                found[arm] |= {
                    f"{metric}_minus_{other}": statistics.mean(values),
                    f"{metric}_p_{other}": corrected[arm],
                    f"{metric}_low_{other}": low,
                    f"{metric}_high_{other}": high,
                }
    return found


def differences(own: Sequence[Run], other: Sequence[Run], metric: str) -> list[float]:
    """Return what one arm has more than another, for every seed that both were run with."""
    by_seed = {run["seed"]: run[metric] for run in other}
    pairs = [run[metric] - by_seed[run["seed"]] for run in own if run["seed"] in by_seed]
    return [value for value in pairs if not math.isnan(value)]


def paired(values: Sequence[float]) -> float:
    """Return the p of a t-test of paired differences, two at least, against 0."""
    from scipy.stats import ttest_1samp

    if len(set(values)) == 1:
        # The test divides by their spread.
        return 1.0 if values[0] == 0 else 0.0
    return float(ttest_1samp(values, 0).pvalue)


def holm(p: dict[str, float]) -> dict[str, float]:
    """Return p-values corrected for their number by Holm's step-down method."""
    corrected: dict[str, float] = {}
    worst = 0.0
    for n_before, name in enumerate(sorted(p, key=lambda one: p[one])):
        worst = max(worst, min(1.0, (len(p) - n_before) * p[name]))
        corrected[name] = worst
    return corrected


def interval(values: Sequence[float], n_compared: int) -> tuple[float, float]:
    """Return the interval of a mean of paired differences, one of several that hold together."""
    from scipy.stats import t

    middle, n = statistics.mean(values), len(values)
    width = statistics.stdev(values) / n**0.5
    width *= float(t.ppf(1 - (1 - CONFIDENCE) / (2 * n_compared), n - 1))
    return middle - width, middle + width


def gains(by_arm: dict[str, list[Run]], arm: str) -> Run:
    """Return the share of the ceiling's gain that an arm recovers, for each compared metric."""
    if BASE not in by_arm or CEILING not in by_arm or arm == BASE:
        return {}
    found: Run = {}
    for metric in COMPARED:
        gain = {run["seed"]: run[metric] for run in by_arm[CEILING]}
        base = {run["seed"]: run[metric] for run in by_arm[BASE]}
        seeds = [run for run in by_arm[arm] if run["seed"] in gain and run["seed"] in base]
        own = np.array([run[metric] - base[run["seed"]] for run in seeds])
        most = np.array([gain[run["seed"]] - base[run["seed"]] for run in seeds])
        found |= recovered(metric, own, most)
    return found


def recovered(metric: str, own: Any, most: Any) -> Run:
    """Return the ratio of two mean gains, and its interval by a bootstrap over the seeds.

    Args:
        metric: of the gains, for the names.
        own: (n seeds,) gains of an arm.
        most: (n seeds,) gains of the ceiling. A mean gain that is not positive leaves nothing to
            recover, and there is no ratio.
    """
    if not len(own) or not most.mean() > 0:
        return {}
    chosen = np.random.default_rng(0).integers(len(own), size=(N_BOOTSTRAP, len(own)))
    below = most[chosen].mean(axis=1)
    ratios = own[chosen].mean(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {
        f"{metric}_recovered": float(own.mean() / most.mean()),
        f"{metric}_recovered_low": float(low),
        f"{metric}_recovered_high": float(high),
    }


def headline_of(rows: Sequence[Run], held_back: str | None) -> dict[str, float | int | str]:
    """Return the headline numbers, AP in per cent.

    Args:
        rows: those of all seeds are read; keys without a prefix are of the first one's pool.
        held_back: the pool of the keys that begin with `held_back_`.
    """
    means = [row for row in rows if row["seed"] == "all"]
    headline: dict[str, float | int | str] = {}
    for row in means:
        if row["pool"] == means[0]["pool"]:
            headline |= _of_first_pool(row)
    for row in means:
        if row["pool"] == held_back:
            headline |= _of_held_back(row)
    return headline


def _of_first_pool(row: Run) -> Run:
    arm = row["arm"]
    found = {}
    for name in METRICS:
        if name in row:
            found[f"{name}_{arm}"] = round(100 * row[name], 2)
            found[f"{name}_{arm}_std"] = round(100 * row[f"{name}_std"], 2)
    for name in ("defect_auc", "defect_precision", "defect_recall", "good_lost", "accepted"):
        if name in row:
            found[f"{name}_{arm}"] = round(row[name], 3)
    return found


def _of_held_back(row: Run) -> Run:
    arm = row["arm"]
    steers = ARMS[arm.removesuffix(WALL)].steers
    by_instance = steers or "defect_recall" not in row
    recall, lost = (
        ("instance_recall", "instance_good_lost") if by_instance else ("defect_recall", "good_lost")
    )
    named = {
        "recall": recall,
        "recall_at_3": "instance_recall_at_3",
        "good_lost": lost,
        **{f"good_lost_{group}": f"{lost}_{group}" for group in "rcf"},
        **{f"{metric}_recovered": f"{metric}_recovered" for metric in COMPARED},
    }
    return {
        f"held_back_{key}_{arm}": round(row[name], 3) for key, name in named.items() if name in row
    }
