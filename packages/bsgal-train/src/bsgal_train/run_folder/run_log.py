"""Numbers of a run over its steps: JSON lines for programs, TensorBoard for people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from bsgal_train.processes import group as processes
from bsgal_train.run_folder.layout import RunFolder, write_text

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Append rows to `metrics.jsonl` and to event files in `tensorboard/`.

    Of the processes of a run, only the first one writes.

    Args:
        folder: output folder of the run.
        resumed_step: rows after this step are of steps that will be done again; they are dropped.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self._path = RunFolder(folder).metrics
        self._writer: SummaryWriter | None = None
        if processes.rank() != 0:
            return
        kept = [row for row in read_metrics(self._path) if row["step"] <= resumed_step]
        write_text(self._path, "".join(_line(row) for row in kept))
        events = RunFolder(folder).tensorboard
        self._writer = SummaryWriter(str(events), purge_step=resumed_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one row; every value is also a TensorBoard scalar of its name."""
        if self._writer is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, **values}))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a `metrics.jsonl`; a torn last line is dropped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # Text after the last line break was cut off while being written.
    return [json.loads(line) for line in lines[:-1]]


def _line(row: dict[str, float]) -> str:
    # JSON has no word for a number that is not finite, such as a gradient that overflowed in fp16.
    return json.dumps({name: value for name, value in row.items() if math.isfinite(value)}) + "\n"
