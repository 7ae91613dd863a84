"""Fuzz every reader of files: `python run.py [--cases N] [--seed N] [--case NUMBER]`.

Prints a table of verdicts, and every case that ended badly; a case is run again by its number.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cases import BAD, GOOD, Case, Outcome, Target, run_case, usual_result
from inputs import make_all
from targets import all_targets

import bsgal_generate._image_set
import bsgal_paste._lvis


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; return 1 if one ended badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default 0)")
    parser.add_argument("--case", type=int, help="run this one alone, and say all about it")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--trust", action="store_true", help="break readers, to see them caught")
    parser.add_argument("--broken", choices=BROKEN, help="break every one, to see how it ends")
    options = parser.parse_args(arguments)
    if options.trust:
        trust_files()
    with tempfile.TemporaryDirectory(prefix="bsgal-fuzz-") as scratch:
        root = Path(scratch)
        make_all(root / "inputs")
        numbers = range(options.cases) if options.case is None else [options.case]
        targets = all_targets(root / "inputs")
        usual = {target.name: usual_result(target) for target in targets}
        if options.broken:
            targets = [replace(target, read=BROKEN[options.broken]) for target in targets]
        work = partial(_outcome, seed=options.seed, targets=targets, root=root, usual=usual)
        outcomes = _in_processes(work, numbers, options.jobs)
    return _report(outcomes, is_single=options.case is not None)


def _in_processes(
    work: Callable[[int], Outcome], numbers: Sequence[int], n_processes: int
) -> dict[int, Outcome]:
    global _work
    # Forked processes have it from here: what is in it need not be sent to them.
    _work = work
    with multiprocessing.get_context("fork").Pool(n_processes) as pool:
        return dict(zip(numbers, pool.imap(_outcome_of, numbers, chunksize=8), strict=True))


_work: Callable[[int], Outcome]


def _outcome_of(number: int) -> Outcome:
    return _work(number)


def _outcome(
    number: int, *, seed: int, targets: list[Target], root: Path, usual: dict[str, str]
) -> Outcome:
    return run_case(Case(number, seed), targets, root, usual)


def _fault(root: Path) -> None:
    ctypes.string_at(0)


def _memory(root: Path) -> None:
    bytearray(4 << 30)


def _hang(root: Path) -> None:
    while True:
        pass


BROKEN = {"fault": _fault, "memory": _memory, "hang": _hang}


def trust_files() -> None:
    """Take what image sets and annotations hold for granted, as readers without a schema would."""
    bsgal_generate._image_set.check_object = lambda *_, **__: None
    bsgal_paste._lvis.check_lvis = lambda *_: None


def _report(outcomes: dict[int, Outcome], *, is_single: bool) -> int:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes.values():
        table[outcome.target][outcome.verdict] += 1
        table["all"][outcome.verdict] += 1
    verdicts = (*GOOD, *BAD)
    print(f"{'':24}" + "".join(f"{verdict:>10}" for verdict in verdicts))
    for name, counts in table.items():
        print(f"{name:24}" + "".join(f"{counts[verdict]:>10}" for verdict in verdicts))
    bad = {number: one for number, one in outcomes.items() if one.verdict in BAD}
    for number, one in (outcomes if is_single else bad).items():
        print(f"\ncase {number}: {one.verdict}, {one.target}, {one.what}\n{one.detail}")
    print(json.dumps({verdict: table["all"][verdict] for verdict in verdicts}))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
