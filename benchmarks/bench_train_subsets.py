"""Does a score predict the outcome? Train on random halves of a pool, and hold sums against it.

Every run pastes another random half of each category's instances; data order, start and steps are
the same. For each score, its sum over the half is ranked against what came of the run: the fall of
the real loss, every class weighing alike, from the run with the highest; and APr. A score of use
has a high rank correlation (Spearman; intervals by a bootstrap over the halves). `not_spoilt`, the
number of good instances of the half, is what is known of the pool itself.

Scores are given by `--scores`: a .json, .parquet or .npz file with scores by instance, or NAME=RUN,
a run's folder with its decision log (`train_study/score_table.py` tells the forms). Finished runs
are kept in `--state`; several processes may share the work with `--first` and `--part`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _harness import ROOT, write_result
from train_study.pools import OWN_POOLS, StudyPool, open_pool
from train_study.score_table import Scores, read_scores
from train_study.start import STARTS, start_detector
from train_study.subsets import Half, Halves, correlation, sums

NAME = "train_subsets"
OUTCOMES = {"": "fall of the real loss", "apr_": "APr"}


def main() -> None:
    """Run what is missing, then write the result."""
    options = parse()

    import torch

    from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset

    torch.set_num_threads(options.threads)
    options.state.mkdir(parents=True, exist_ok=True)
    ensure_builtin_dataset(options.state / "dataset")
    pool = open_pool(options.pool, options.state, options.per_category)
    scores = {"not_spoilt": {one: float(one not in pool.planted) for one in pool.groups}}
    for source in options.scores:
        scores |= read_scores(source)
    check(scores, pool)
    start = start_detector(
        options.start, options.state, threads=options.threads,
        n_steps=options.steps if options.quick else None,
    )  # fmt: skip
    halves = Halves(
        options.state, pool, start, n_steps=options.steps, batch_size=options.batch_size
    )
    found = [halves.run(number) for number in range(options.first, options.halves)]
    if options.part:
        return
    rows = compared(found, scores)
    is_usual = options.pool == "drawn-development" and not options.quick
    written = write_result(
        NAME,
        rows=[*rows, *({"half": n, **half.values} for n, half in enumerate(found))],
        headline=headline_of(rows),
        libraries=("torch", "torchvision", "bsgal-train", "bsgal-score"),
        path=options.out or (None if is_usual else options.state / f"{pool.name}.json"),
    )
    print(f"result: {written}")


def compared(halves: Sequence[Half], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Return for each score its correlation with each outcome over the halves."""
    losses = [half.values["balanced_real_loss"] for half in halves]
    outcomes = {
        "": [max(losses) - loss for loss in losses],
        "apr_": [half.values["apr"] for half in halves],
    }
    return [
        {
            "score": name,
            "n_halves": len(halves),
            "n_scored": len(own),
            **{
                f"{prefix}{key}": value
                for prefix, outcome in outcomes.items()
                for key, value in correlation(sums(halves, own), outcome).items()
            },
        }
        for name, own in scores.items()
    ]


def headline_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int | str]:
    """Return the correlations with the real loss and, `apr_` before the score's name, with APr."""
    return {
        f"spearman_{prefix}{row['score']}{ending}": round(row[f"{prefix}{key}"], 3)
        for row in rows
        for prefix in OUTCOMES
        for key, ending in (("spearman", ""), ("low", "_low"), ("high", "_high"))
    }


def check(scores: Mapping[str, Scores], pool: StudyPool) -> None:
    """Stop if a score is of other instances than the pool's."""
    for name, own in scores.items():
        if not own.keys() & pool.groups.keys():
            some = next(iter(own))
            raise SystemExit(
                f"the score {name} is of none of the instances of {pool.folder}, but of others "
                f"such as {some!r}: it is of another pool"
            )


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Return `scores`, the correlations of every score."""
    lines = [f"| score | {' | '.join(OUTCOMES.values())} |\n", "|---" * (1 + len(OUTCOMES)) + "|\n"]
    for row in result["rows"]:
        if "score" in row:
            cells = [
                f"{row[f'{prefix}spearman']:.2f} "
                f"({row[f'{prefix}low']:.2f} to {row[f'{prefix}high']:.2f})"
                for prefix in OUTCOMES
            ]
            lines.append(f"| {row['score'].replace('_', ' ')} | {' | '.join(cells)} |\n")
    return {"scores": "".join(lines)}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    state = ROOT / "runs" / "train_study"
    parser.add_argument(
        "--state", type=Path, default=state,
        help=f"folder of all runs, that of the study (default {state.relative_to(ROOT)})",
    )  # fmt: skip
    parser.add_argument(
        "--pool", default="drawn-development",
        help=f"a pool's folder, or of {', '.join(OWN_POOLS)} (default drawn-development)",
    )  # fmt: skip
    parser.add_argument(
        "--scores", nargs="+", default=[], metavar="SOURCE", help="files of scores, or NAME=RUN"
    )
    parser.add_argument("--halves", type=int, help="how many (default 40)")
    parser.add_argument("--first", type=int, default=0, help="half to begin with, with --part")
    parser.add_argument("--steps", type=int, help="steps of a run (default 60)")
    parser.add_argument("--batch-size", type=int, help="images per step (default 8)")
    parser.add_argument("--per-category", type=int, help="instances (default 30)")
    parser.add_argument("--start", choices=STARTS, help=f"default {STARTS[0]}")
    parser.add_argument("--out", type=Path, help="file of the result")
    parser.add_argument("--quick", action="store_true", help="three halves of one step")
    parser.add_argument("--part", action="store_true", help="only run, write no result")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    options = parser.parse_args()
    usual = {"halves": 40, "steps": 60, "batch_size": 8, "per_category": 30, "start": STARTS[0]}
    quick = {"halves": 3, "steps": 1, "batch_size": 2, "per_category": 4, "start": "forgotten"}
    for key, value in (quick if options.quick else usual).items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    if options.first and not options.part:
        parser.error("--first leaves halves to another process: give --part too")
    if options.halves - options.first < 3 and not options.part:
        parser.error("a correlation needs three halves at least")
    if options.quick:
        options.state = options.state / "quick"
    return options


if __name__ == "__main__":
    main()
