"""The command line of a study."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path

from _harness import ROOT, require_tests, write_result

from train_study.arms import ARMS, WALL, WALL_ARMS
from train_study.pools import PoolKind
from train_study.runs import Study, arms_in_order
from train_study.summary import headline_of, summaries


def main(
    name: str, pool: PoolKind, description: str, *, arms: Collection[str], at_equal_time: bool
) -> None:
    """Run what is missing, then write the result.

    Args:
        name: of the result.
        pool: what the instances are before a part of them is spoilt.
        description: of the benchmark.
        arms: unless the command line names others.
        at_equal_time: unless the command line says otherwise, repeat arms that cost another time
            than `paste_all` in its time.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    state = ROOT / "runs" / name
    parser.add_argument(
        "--state", type=Path, default=state,
        help=f"folder of all runs (default {state.relative_to(ROOT)})",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="three arms, two seeds, two steps")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds (default 0 to 4)"
    )
    parser.add_argument("--steps", type=int, default=120, help="steps of a run (default 120)")
    parser.add_argument("--batch-size", type=int, default=8, help="images per step (default 8)")
    parser.add_argument("--per-category", type=int, default=30, help="instances (default 30)")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(arms),
        help=f"default: {' '.join(arms)}",
    )
    parser.add_argument(
        "--wall", action=argparse.BooleanOptionalAction, default=at_equal_time,
        help="repeat dearer arms in the time of paste_all",
    )  # fmt: skip
    parser.add_argument("--part", action="store_true", help="only run, write no result")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.arms, arguments.wall = ["none", "instance", "paste_random"], False
        arguments.seeds, arguments.steps, arguments.batch_size = [0, 1], 2, 2
        arguments.per_category = 2
        arguments.state = arguments.state / "quick"
    else:
        require_tests("packages/bsgal-train/tests/selection")
    if "paste_random" in arguments.arms and "instance" not in arguments.arms:
        parser.error("paste_random keeps the share that instance keeps: name both")

    import torch

    torch.set_num_threads(arguments.threads)
    study = Study(
        arguments.state, pool, arguments.per_category, arguments.steps, arguments.batch_size
    )
    ordered = arms_in_order(arguments.arms)
    if arguments.wall:
        timed = study.steps_at_equal_time()
        ordered += [arm + WALL for arm in WALL_ARMS if arm in timed and arm in ordered]
    for seed in arguments.seeds:
        for arm in ordered:
            study.run(arm, seed)
    if arguments.part:
        return
    runs = [study.found(arm, seed) for seed in arguments.seeds for arm in ordered]
    costs = study.costs() if arguments.wall else {}
    rows = [
        *runs,
        *summaries(runs),
        *({"arm": arm, "seed": "cost", **cost} for arm, cost in costs.items()),
    ]
    headline = headline_of(rows)
    if arguments.quick:
        print(json.dumps({"headline": headline, "rows": rows}, indent=1))
        return
    write_result(
        name,
        rows=rows,
        headline=headline,
        libraries=("torch", "torchvision", "bsgal-train", "bsgal-score"),
    )
