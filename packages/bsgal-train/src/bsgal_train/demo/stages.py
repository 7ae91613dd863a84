"""Stages that are done once: a finished stage is reused, an interrupted one goes on."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bsgal_train.demo.display import Display
from bsgal_train.run_folder.layout import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """What is known of a stage on disk."""

    title: str
    finished: bool
    seconds: float
    """Wall time over all starts."""
    peak_memory_gib: float
    """Largest resident size of the process up to the stage's end, since its start."""
    summary: str


def _peak_memory_gib() -> float:
    # ru_maxrss counts kibibytes on Linux and bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return peak * unit / 2**30


class StageBook:
    """Runs stages and keeps one small JSON file per stage under `folder`."""

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder = folder
        self.display = display
        self._names: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def record(self, name: str) -> StageRecord | None:
        """Return what is known of a stage, or None where it never started."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        return StageRecord(**json.loads(path.read_text(encoding="utf-8")))

    def records(self) -> list[StageRecord]:
        """Return the records of this start's stages so far, in the order they were run."""
        return [record for name in self._names if (record := self.record(name)) is not None]

    def run(self, name: str, title: str, work: Callable[[], str]) -> None:
        """Do `work` unless it is done already; `work` returns a one-line summary.

        `work` must itself be able to go on where an earlier start of it was interrupted. Time
        spent before an interruption is counted.
        """
        self._names.append(name)
        earlier = self.record(name)
        if earlier is not None and earlier.finished:
            self.display.say(f"{title}: {earlier.summary} (done before)")
            return
        began_s = time.monotonic()
        before_s = earlier.seconds if earlier is not None else 0.0
        summary, finished = "interrupted", False
        self.display.begin(title)
        try:
            summary = work()
            finished = True
        finally:
            seconds = before_s + time.monotonic() - began_s
            self._write(
                name,
                StageRecord(
                    title=title,
                    finished=finished,
                    seconds=seconds,
                    peak_memory_gib=_peak_memory_gib(),
                    summary=summary,
                ),
            )
            self.display.end(f"{summary} ({seconds:.0f} s)")

    def _write(self, name: str, record: StageRecord) -> None:
        write_json(self.folder / f"{name}.json", asdict(record), indent=1)
