from __future__ import annotations

import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bsgal_train.run_folder.run_log import MetricsLog, read_metrics


def test_rows_are_appended(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(1, {"loss": 2.0})
        log.write(2, {"loss": 1.0})

    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
    ]


def test_resuming_drops_rows_of_steps_that_are_done_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(1, {"loss": 2.0})
        log.write(2, {"loss": 1.0})

    with MetricsLog(tmp_path, resumed_step=1) as log:
        log.write(2, {"loss": 1.5})

    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [2.0, 1.5]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')

    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_numbers_that_json_has_no_word_for_are_left_out(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(1, {"loss": 2.0, "gradient_norm": math.inf, "contribution": math.nan})

    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_values_reach_tensorboard(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(3, {"loss": 2.5})

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("loss")
    assert (event.step, event.value) == (3, 2.5)
