from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from bsgal_train.run_folder.decision_log import SCHEMA, Decision, DecisionLog, read_decisions


def decision(step: int, contribution: float | None = 0.25) -> Decision:
    return Decision(
        step=step,
        image_id=7,
        instance_id=f"a-{step}",
        category_id=3,
        frequency="r",
        granularity="batch",
        contribution=contribution,
        threshold=-0.05,
        verdict="accept" if contribution is not None else "no_evidence",
        accepted_share=1.0 if contribution is not None else None,
    )


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, resumed_step=0)
    log.add([decision(1), decision(2)])
    log.flush(2)
    log.add([decision(3, None)])
    log.flush(3)

    table = read_decisions(tmp_path)

    assert table.column("instance_id").to_pylist() == ["a-1", "a-2", "a-3"]
    assert table.column("contribution").to_pylist() == [0.25, 0.25, None]
    assert table.schema.names == SCHEMA.names


def test_parts_name_their_schema(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, resumed_step=0)
    log.add([decision(1)])
    log.flush(1)

    (part,) = tmp_path.glob("*.parquet")
    assert pq.read_schema(part).metadata[b"schema"] == b"bsgal.decision_log/1"


def test_resuming_cuts_the_log_back(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, resumed_step=0)
    for step in (1, 2, 3):
        log.add([decision(step)])
        log.flush(step)

    DecisionLog(tmp_path, resumed_step=2)

    assert read_decisions(tmp_path).column("step").to_pylist() == [1, 2]


def test_a_log_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, resumed_step=0)
    log.flush(5)

    table = read_decisions(tmp_path)

    assert (table.num_rows, table.schema.names) == (0, SCHEMA.names)


def test_a_log_may_be_named_by_a_string(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, resumed_step=0)
    log.add([decision(1)])
    log.flush(1)

    assert read_decisions(str(tmp_path)).num_rows == 1
