"""What every benchmark shares: rounds in turn, provenance, and one JSON result per benchmark.

Machines are shared and their speed drifts. So the cases of a benchmark run in turn, round by round,
in one process, and what is quoted are medians and ratios of medians.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one case: one number per round."""

    rounds_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds_s)

    def quantiles_s(self) -> tuple[float, float, float]:
        """The 0.2, 0.5 and 0.8 quantiles over the rounds."""
        ordered = sorted(self.rounds_s)
        last = len(ordered) - 1
        return (ordered[round(0.2 * last)], self.median_s, ordered[round(0.8 * last)])


def require_tests(*paths: str) -> None:
    """Run the tests of what is about to be timed; stop if one fails.

    A speed without a right answer means nothing.
    """
    command = [sys.executable, "-m", "pytest", "-q", *paths]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SystemExit(f"not timed: the tests of {', '.join(paths)} fail")


def time_in_turn(
    cases: Mapping[str, Callable[[], object]], *, rounds: int = 7, warmup: int = 1
) -> dict[str, Timing]:
    """Time the cases in turn, A B C A B C ..., and return one timing per case."""
    for _ in range(warmup):
        for run in cases.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_extra_bytes(run: Callable[[], object]) -> int:
    """Return by how many bytes the resident memory of this process rose at most during `run`.

    Sampled every millisecond, so a shorter peak can be missed. Linux only.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    statm = Path("/proc/self/statm")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page

    before, peak, stop = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, resident())
            stop.wait(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
        peak = max(peak, resident())
    finally:
        stop.set()
        watcher.join()
    return max(0, peak - before)


def measured_commit(root: Path) -> str:
    """Return the commit that a repository is at, with `-dirty` where a tracked file differs.

    Results do not count: several are written one after the other, before any is committed.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("diff", "HEAD", "--name-only", "--", ".", ":(exclude)benchmarks/results")
    return git("describe", "--always", "--abbrev=12") + ("-dirty" if changed else "")


def provenance(libraries: Sequence[str]) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat a result."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "commit": measured_commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cpu": model,
            "cores": os.cpu_count(),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in libraries},
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Return a result as JSON with one line a row: small, and its changes can be read."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in result["rows"])
    whole = json.dumps({**result, "rows": []}, indent=1)
    return whole.replace('"rows": []', f'"rows": [\n{rows}\n ]', 1) + "\n"


def write_result(
    name: str,
    *,
    rows: Sequence[Mapping[str, Any]],
    headline: Mapping[str, float | int | str],
    libraries: Sequence[str] = ("torch", "numpy"),
    path: Path | None = None,
) -> Path:
    """Write `benchmarks/results/<name>.json`, or another file, and return its path."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "name": name,
        "provenance": provenance(libraries),
        "rows": [dict(row) for row in rows],
        "headline": dict(headline),
    }
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(as_text(result))
    temporary.replace(path)
    print(json.dumps(result["headline"], indent=1))
    return path
