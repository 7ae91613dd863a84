from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsgal_train.cli import main
from bsgal_train.errors import Detectron2MissingError
from bsgal_train.machine import doctor
from bsgal_train.machine.doctor import diagnose


def test_a_machine_that_runs_the_tests_lacks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--out", str(tmp_path)]) == 0

    printed = capsys.readouterr().out
    assert "missing" not in {line.split()[0] for line in printed.splitlines()}
    for what in ("Python", "torch", "detectron2", "threads", "memory", "cache"):
        assert what in printed


def test_a_missing_library_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda module: module not in ("timm", "resvg_py"))

    assert main(["doctor"]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert "missing timm; mend: pip install timm" in lines
    assert any(line.startswith("note ") and "resvg-py" in line for line in lines)


def test_programs_read_it_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda module: module != "timm")

    assert main(["doctor", "--json"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert {"state": "missing", "text": "timm; mend: pip install timm"} in found


def test_a_missing_detectron2_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise Detectron2MissingError("detectron2 is not installed")

    monkeypatch.setattr(doctor, "ensure_detectron2", missing)

    (found,) = [one for one in diagnose() if "detectron2" in one.text]
    assert found.state == "missing"
    assert "mend: bsgal-train setup-detectron2" in found.text


def test_a_cache_that_cannot_be_written_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)

    (found,) = [one for one in diagnose(tmp_path) if one.text.startswith("cache for")]
    assert (found.state, "XDG_CACHE_HOME" in found.text) == ("note", True)
