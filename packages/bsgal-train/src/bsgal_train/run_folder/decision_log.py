"""What became of every judged instance, as Parquet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bsgal_train.processes import group as processes
from bsgal_train.run_folder.layout import DECISIONS_PART, written_whole

__all__ = ["SCHEMA", "Decision", "DecisionLog", "read_decisions"]

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("image_id", pa.int64()),
        ("instance_id", pa.string()),
        ("category_id", pa.int64()),
        ("frequency", pa.string()),
        ("granularity", pa.string()),
        ("contribution", pa.float64()),
        ("threshold", pa.float64()),
        ("verdict", pa.string()),
        ("accepted_share", pa.float64()),
    ],
    metadata={"schema": "bsgal.decision_log/1"},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One judged instance.

    Attributes:
        step: the step it was judged in, from 1.
        image_id: the annotated image it was pasted into.
        instance_id: its row in the instance pool.
        category_id: its category in the training annotations.
        frequency: r, c or f.
        granularity: what shared the verdict; `batch`: every instance of the step.
        contribution: the score, None where there was nothing to score.
        threshold: the score that was needed.
        verdict: `accept`, `reject`, `no_evidence` or `nonfinite`.
        accepted_share: accepted share of all units judged accept or reject up to here, None
            before the first.
    """

    step: int
    image_id: int
    instance_id: str
    category_id: int
    frequency: str
    granularity: Literal["batch", "image", "instance"]
    contribution: float | None
    threshold: float
    verdict: str
    accepted_share: float | None


class DecisionLog:
    """A folder of Parquet parts, one per checkpoint, so that a resumed run can cut it back.

    The processes of a run keep one log: their rows come together when it is flushed.

    Args:
        folder: made if missing.
        resumed_step: parts after this step are of steps that will be done again; they go.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self._folder = folder
        self._rows: list[Decision] = []
        if processes.rank() != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in DECISIONS_PART.paths(folder):
            if (DECISIONS_PART.step(path.name) or 0) > resumed_step:
                path.unlink()

    def add(self, decisions: Iterable[Decision]) -> None:
        """Keep rows for the next part."""
        self._rows.extend(decisions)

    def flush(self, step: int) -> None:
        """Write the kept rows of all processes, all of steps up to `step`, as one part."""
        rows, self._rows = self._rows, []
        # By step, then by process: the order in which one process would have made them.
        rows = sorted(itertools.chain(*processes.gather(rows)), key=attrgetter("step"))
        if not rows or processes.rank() != 0:
            return
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        with written_whole(self._folder / DECISIONS_PART.of(step)) as temporary:
            pq.write_table(table, temporary)


def read_decisions(folder: str | Path) -> pa.Table:
    """Return all rows of a decision log in the order they were made.

    Args:
        folder: `decisions` in the run's folder; where there is none, nothing was judged.
    """
    tables = [pq.read_table(path, schema=SCHEMA) for path in DECISIONS_PART.paths(Path(folder))]
    return pa.concat_tables([SCHEMA.empty_table(), *tables])
