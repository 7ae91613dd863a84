"""One progress display for all stages of a long job."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 15.0


class Display:
    """Show stages with a bar and the time left; plain lines where the output is no terminal.

    Use it as a context manager, call `begin` at the start of a stage, `update` as often as you
    like, and `end` with the stage's outcome.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stdout, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._began_s = self._printed_s = 0.0
        self._first_done = 0

    def __enter__(self) -> Display:
        # Without a terminal it would print an empty line at its end, before rich 14.3.
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self._console.print(line, markup=False, soft_wrap=True)

    def begin(self, title: str) -> None:
        """Start showing a stage."""
        self._title = title
        self._began_s = self._printed_s = time.monotonic()
        self._first_done = -1
        if self._console.is_terminal:
            self._task = self._progress.add_task(title, total=None)
        else:
            self.say(f"{title} ...")

    def update(self, done: int, total: int, detail: str = "") -> None:
        """Show that `done` of `total` units of the current stage are done."""
        if self._first_done < 0:
            # What an earlier start had done already says nothing about this start's speed.
            self._first_done = done
        if self._task is not None:
            title = f"{self._title} [dim]{detail}[/dim]" if detail else self._title
            self._progress.update(self._task, completed=done, total=total, description=title)
            return
        now_s = time.monotonic()
        if now_s - self._printed_s < LINE_EVERY_S:
            return
        self._printed_s = now_s
        speed = (done - self._first_done) / (now_s - self._began_s)
        left = f", {(total - done) / speed:.0f} s left" if speed > 0 else ""
        self.say(f"{self._title}: {done}/{total}{left}{'  ' + detail if detail else ''}")

    def end(self, outcome: str) -> None:
        """Finish the current stage and say what came of it."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self.say(f"{self._title}: {outcome}")
