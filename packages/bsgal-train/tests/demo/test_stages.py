from __future__ import annotations

import io
from pathlib import Path

import pytest

from bsgal_train.demo.display import Display
from bsgal_train.demo.settings import DemoSettings
from bsgal_train.demo.stages import StageBook


@pytest.fixture
def book(tmp_path: Path) -> StageBook:
    return StageBook(tmp_path / "stages", Display(io.StringIO()))


def test_finished_stage_is_not_done_again(book: StageBook) -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        return "made 3 things"

    book.run("things", "making things", work)
    book.run("things", "making things", work)
    assert len(calls) == 1
    record = book.record("things")
    assert record is not None
    assert (record.finished, record.summary) == (True, "made 3 things")


def test_interrupted_stage_is_started_again_and_its_time_counts(book: StageBook) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        book.run("things", "making things", interrupted)
    first = book.record("things")
    assert first is not None
    assert not first.finished
    book.run("things", "making things", lambda: "made")
    second = book.record("things")
    assert second is not None
    assert second.finished
    assert second.seconds >= first.seconds


def test_display_prints_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Display(stream) as display:
        display.begin("masks")
        display.update(1, 10, "detail")
        display.end("kept 9 of 10")
    assert stream.getvalue().splitlines() == ["masks ...", "masks: kept 9 of 10"]


@pytest.mark.parametrize("name", ["images_per_category", "train_steps", "threads"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        DemoSettings(**{name: 0})
