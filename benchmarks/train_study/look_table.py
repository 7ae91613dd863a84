"""How well each source of evidence finds spoilt instances, after one look and after more.

AUC: share of the pairs in which a good instance looks better than a spoilt one. Recall: share of
the spoilt ones that is rejected where 3 % of the good ones are. The score of an instance is the
mean over its first looks; those that were not seen as often are left out.

    cd benchmarks && python -m train_study.look_table looks.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_GOOD_LOST = 0.03
Columns = Mapping[str, NDArray]


def sources(looks: Columns) -> dict[str, NDArray]:
    """Return each source's value of every look, (n,); large is good, NaN where there is none."""
    features = looks["feature"].astype(np.float64)
    classes, n_classes = looks["class_index"], len(looks["category_name"])
    real = looks["is_real"] & np.isfinite(features).all(axis=1)
    prototypes = np.stack(
        [features[real & (classes == index)].mean(axis=0) for index in range(n_classes)]
    )
    centre = prototypes.mean(axis=0)
    return {
        "prototype, centred": _cosines(features - centre, (prototypes - centre)[classes]),
        "prototype, plain": _cosines(features, prototypes[classes]),
        **{name.replace("_", " "): -looks[name] for name in ("cls_loss", "mask_loss", "box_loss")},
        "class row": looks["class_row"],
    }


def table(looks: Columns, n_looks: tuple[int, ...] = (1, 2, 4)) -> Iterator[str]:
    """Yield the lines of the table."""
    pool = ~looks["is_real"]
    ids, unit = np.unique(looks["id"][pool], return_inverse=True)
    planted, group = (
        np.array(["" for _ in ids], dtype=object),
        np.array(["" for _ in ids], dtype=object),
    )
    planted[unit], group[unit] = looks["planted"][pool], looks["group"][pool]
    kinds = sorted(set(planted) - {""})
    yield f"| source | looks | n | {' | '.join(f'AUC, recall {g}' for g in ('all', *'rcf'))} | " + (
        " | ".join(kinds) + " |"
    )
    yield "|---" * (7 + len(kinds)) + "|"
    for name, values in sources(looks).items():
        for number in n_looks:
            scores = _first_means(unit, values[pool], number, len(ids))
            seen = np.isfinite(scores)
            cells = []
            for one in ("all", *"rcf"):
                chosen = seen & ((group == one) | (one == "all"))
                good, bad = scores[chosen & (planted == "")], scores[chosen & (planted != "")]
                cells.append(f"{auc(good, bad):.3f}, {recall(good, bad):.2f}")
            good = scores[seen & (planted == "")]
            cells += [f"{recall(good, scores[seen & (planted == kind)]):.2f}" for kind in kinds]
            yield f"| {name} | {number} | {seen.sum()} | {' | '.join(cells)} |"


def auc(good: NDArray, bad: NDArray) -> float:
    """Return the share of pairs in which the good one scores higher; ties count half."""
    ordered = np.sort(bad)
    below = np.searchsorted(ordered, good, "left") + np.searchsorted(ordered, good, "right")
    return float(below.mean() / 2 / max(len(bad), 1)) if len(good) else np.nan


def recall(good: NDArray, bad: NDArray) -> float:
    """Return the share of spoilt ones below the quantile of the good that may be lost."""
    if not len(good) or not len(bad):
        return np.nan
    return float((bad < np.quantile(good, _GOOD_LOST)).mean())


def _first_means(unit: NDArray, values: NDArray, number: int, n_units: int) -> NDArray:
    """Return the mean of each unit's first values, NaN where it has fewer."""
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(unit[finite], kind="stable")]
    units = unit[order]
    place = np.arange(len(order)) - np.searchsorted(units, units)
    chosen = order[place < number]
    counts = np.bincount(unit[chosen], minlength=n_units)
    sums = np.bincount(unit[chosen], values[chosen], minlength=n_units)
    return np.where(counts == number, sums / number, np.nan)


def _cosines(a: NDArray, b: NDArray) -> NDArray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("looks", type=Path, help="file of `train_study.look_dump`")
    with np.load(parser.parse_args().looks) as looks:
        print("\n".join(table({name: looks[name] for name in looks.files})))


if __name__ == "__main__":
    main()
