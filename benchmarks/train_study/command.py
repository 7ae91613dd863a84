"""The command line of a study."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _harness import ROOT, require_tests, write_result

from train_study.arms import ARMS, WALL, WALL_ARMS, in_order
from train_study.kinds import kinds_of
from train_study.pools import OWN_POOLS, StudyPool, open_pool
from train_study.runs import Study
from train_study.start import STARTS, start_detector
from train_study.summary import headline_of, summaries

QUICK = {
    "arms": ["none", "paste_all", "paste_clean", "class_row"],
    "seeds": [0, 1],
    "steps": 2,
    "batch_size": 2,
    "per_category": 4,
    "start": "forgotten",
}
"""What `--quick` puts in the place of what the command line does not name."""


def main(
    name: str, pools: Sequence[str], description: str, *, arms: Sequence[str], at_equal_time: bool
) -> None:
    """Run what is missing, then write the result.

    Args:
        name: of the result.
        pools: unless the command line names others; the result of these is committed.
        description: of the benchmark.
        arms: unless the command line names others.
        at_equal_time: unless the command line says otherwise, repeat arms that cost another time
            than `paste_all` in its time.
    """
    usual = {
        "arms": list(arms), "seeds": list(range(8)), "steps": 120, "batch_size": 8,
        "per_category": 30, "start": STARTS[0],
    }  # fmt: skip
    options = parse(name, pools, description, usual, at_equal_time)

    import torch

    from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset

    torch.set_num_threads(options.threads)
    options.state.mkdir(parents=True, exist_ok=True)
    ensure_builtin_dataset(options.state / "dataset")
    opened = [open_pool(one, options.state, options.per_category) for one in options.pool]
    if not options.quick:
        require_tests("packages/bsgal-train/tests/selection")
    start = start_detector(
        options.start, options.state, threads=options.threads,
        n_steps=options.steps if options.quick else None,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for pool in opened:
        study = Study(
            options.state, pool, start, n_steps=options.steps, batch_size=options.batch_size,
            clip=options.clip,
        )  # fmt: skip
        rows += run_study(study, options)
    if options.part:
        return
    rows = [*rows, *summaries([row for row in rows if row["seed"] != "cost"])]
    elsewhere = options.state / f"{'+'.join(pool.name for pool in opened)}.json"
    is_usual = options.pool == list(pools) and not options.quick
    held_back = next((pool.name for pool in opened if is_held_back(pool)), None)
    written = write_result(
        name,
        rows=rows,
        headline={"start": options.start, **headline_of(rows, held_back)},
        libraries=("torch", "torchvision", "bsgal-train", "bsgal-score"),
        path=options.out or (None if is_usual else elsewhere),
    )
    print(f"result: {written}")


def run_study(study: Study, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every arm and seed that is not there; return a row for each, and for each cost."""
    ordered = in_order(options.arms)
    costs: dict[str, dict[str, float]] = {}
    if options.wall:
        timed, costs = study.steps_at_equal_time(), study.costs()
        ordered += [arm + WALL for arm in WALL_ARMS if arm in timed and arm in ordered]
    for seed in options.seeds:
        for arm in ordered:
            study.run(arm, seed)
    if options.part:
        return []
    return [
        *(study.found(arm, seed) for seed in options.seeds for arm in ordered),
        *(
            {"pool": study.pool.name, "arm": arm, "seed": "cost", **cost}
            for arm, cost in costs.items()
        ),
    ]


def is_held_back(pool: StudyPool) -> bool:
    """Tell whether something is spoilt, and nothing in a way that verdicts were developed with."""
    return bool(pool.kinds) and not set(pool.kinds) & set(kinds_of("development"))


def parse(
    name: str, pools: Sequence[str], description: str, usual: dict[str, Any], wall: bool
) -> argparse.Namespace:
    """Return the options, with what is not given as usual, or as `--quick` has it."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    state = ROOT / "runs" / name
    parser.add_argument(
        "--pool", nargs="+", metavar="POOL", default=list(pools),
        help=f"folders of pools with a planted.json, or of {', '.join(OWN_POOLS)} (default "
        f"{' '.join(pools)})",
    )  # fmt: skip
    parser.add_argument(
        "--state", type=Path, default=state,
        help=f"folder of all runs (default {state.relative_to(ROOT)})",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path,
        help="file of the result (default: in benchmarks/results for the usual pools, else in the "
        "state's folder)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few arms, two seeds, two steps")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds (default 0 to 7)")
    parser.add_argument("--steps", type=int, help=f"steps of a run (default {usual['steps']})")
    parser.add_argument("--batch-size", type=int, help=f"default {usual['batch_size']}")
    parser.add_argument(
        "--per-category", type=int, metavar="N",
        help=f"instances of the study's own pools (default {usual['per_category']})",
    )  # fmt: skip
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, metavar="ARM",
        help=f"of {', '.join(ARMS)} (default: {' '.join(usual['arms'])})",
    )  # fmt: skip
    parser.add_argument(
        "--start", choices=STARTS, help=f"detector of all arms (default {usual['start']})"
    )
    parser.add_argument("--clip", default="", help="CLIP's weights, for the arm clip_filtered")
    parser.add_argument(
        "--wall", action=argparse.BooleanOptionalAction,
        help="repeat dearer arms in the time of paste_all (default: for the usual pools)",
    )  # fmt: skip
    parser.add_argument("--part", action="store_true", help="only run, write no result")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    options = parser.parse_args()
    for key, value in (usual | (QUICK if options.quick else {})).items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    if options.wall is None:
        options.wall = wall and options.pool == list(pools) and not options.quick
    if options.quick:
        options.state = options.state / "quick"
    in_order(options.arms)
    if "clip_filtered" in options.arms and not options.clip:
        parser.error("the arm clip_filtered needs CLIP's weights: give --clip FOLDER")
    return options
