from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from bsgal_paste import ScaleEntry, ScaleStatistics
from bsgal_train.annotations import derived
from bsgal_train.annotations.derived import cache_root, file_sha256, scale_statistics


def test_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)

    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "bsgal-train"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache/bsgal-train"


def test_scales_are_measured_once_for_a_content(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_data / "train.json"
    measured = ScaleStatistics.from_annotations(path)

    assert scale_statistics(path, "a" * 64, tmp_path) == measured
    monkeypatch.setattr(derived, "ScaleStatistics", None)
    with pytest.raises(AttributeError):
        scale_statistics(path, "b" * 64, tmp_path)
    monkeypatch.undo()
    other = tmp_path / "scales" / f"{'a' * 64}.json"
    changed = replace(measured, groups={**measured.groups, "all": ScaleEntry(0.123, 0.1, 12)})
    changed.save(other)
    assert scale_statistics(path, "a" * 64, tmp_path) == changed


@pytest.mark.parametrize("text", ["{", '{"schema": "other"}'])
def test_a_damaged_cache_is_measured_anew(
    text: str, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scales").mkdir()
    (tmp_path / "scales/x.json").write_text(text)

    with caplog.at_level(logging.WARNING):
        found = scale_statistics(tiny_data / "train.json", "x", tmp_path)

    assert found == ScaleStatistics.from_annotations(tiny_data / "train.json")
    assert "measured scales anew" in caplog.text
    assert ScaleStatistics.load(tmp_path / "scales/x.json") == found


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")

    with caplog.at_level(logging.WARNING):
        scale_statistics(tiny_data / "train.json", "x", tmp_path / "file")

    assert "not kept for the next run" in caplog.text
