"""What a running generation tells its caller, and a plain display of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO


@dataclass(frozen=True, slots=True)
class GenerationProgress:
    """State of a run.

    Attributes:
        n_done: Samples that are settled: they have an image, or their redraws are used up.
        n_total: Samples in the plan.
        n_drawn: Images drawn since this run started, redraws included.
        elapsed_s: Seconds since this run started.
        n_by_status: Attempts in the manifest by status.
    """

    n_done: int
    n_total: int
    n_drawn: int
    elapsed_s: float
    n_by_status: Mapping[str, int]

    @property
    def images_per_s(self) -> float | None:
        """Speed of this run; None before its first images."""
        return self.n_drawn / self.elapsed_s if self.n_drawn and self.elapsed_s > 0 else None

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to the end; None before the first images."""
        speed = self.images_per_s
        return None if speed is None else (self.n_total - self.n_done) / speed


class ProgressCallback(Protocol):
    """Anything that can be called with the state, at the start and after every piece drawn."""

    def __call__(self, progress: GenerationProgress, /) -> None:
        """Take note of the state."""


class ProgressMeter:
    """Counts what a run has done and tells a callback."""

    def __init__(self, n_total: int, callback: ProgressCallback | None) -> None:
        self._n_total = n_total
        self._callback = callback
        self._n_done = 0
        self._n_drawn = 0
        self._statuses: Counter[str] = Counter()
        self._start = time.perf_counter()

    def count(self, status: str, *, settled: bool) -> None:
        """Note one attempt's status, and whether it settles its sample."""
        self._statuses[status] += 1
        self._n_done += settled

    def report(self, n_drawn: int = 0) -> None:
        """Tell the callback, after `n_drawn` more images."""
        self._n_drawn += n_drawn
        if self._callback is not None:
            elapsed_s = time.perf_counter() - self._start
            self._callback(
                GenerationProgress(
                    self._n_done, self._n_total, self._n_drawn, elapsed_s, dict(self._statuses)
                )
            )


class TextProgress:
    """Shows one line that rewrites itself on a terminal, and a line every 30 s elsewhere."""

    def __init__(self, stream: TextIO | None = None, every_s: float = 30.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._every_s = every_s
        self._shown_at: float | None = None

    def __call__(self, progress: GenerationProgress, /) -> None:
        """Show the state if it is time to."""
        is_terminal = self._stream.isatty()
        last = progress.n_done == progress.n_total
        due = self._shown_at is None or progress.elapsed_s - self._shown_at >= self._every_s
        if not (is_terminal or last or due):
            return
        self._shown_at = progress.elapsed_s
        line = format_progress(progress)
        start, end = ("\r\x1b[K", "\n" if last else "") if is_terminal else ("", "\n")
        self._stream.write(f"{start}{line}{end}")
        self._stream.flush()


def format_progress(progress: GenerationProgress) -> str:
    """Return the state as one line: counts, speed in images per second, time left."""
    parts = [f"{progress.n_done}/{progress.n_total} images"]
    if (speed := progress.images_per_s) is not None and (left_s := progress.left_s) is not None:
        parts += [f"{speed:.2f} images/s", f"{format_duration(left_s)} left"]
    parts += [f"{n} {status}" for status, n in progress.n_by_status.items() if status != "ok"]
    return ", ".join(parts)


def format_duration(seconds: float) -> str:
    """Return a duration as `4 s`, `3 min 20 s` or `5 h 02 min`."""
    minutes, s = divmod(round(seconds), 60)
    if not minutes:
        return f"{s} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {s:02d} s"
