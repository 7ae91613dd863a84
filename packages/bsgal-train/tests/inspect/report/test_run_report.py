from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from bsgal_train.cli import main
from bsgal_train.inspect.report import run_report
from bsgal_train.recipe import Recipe


def test_results_and_verdicts_come_from_the_runs_files(run_folder: Path) -> None:
    report = run_report(run_folder)

    assert report.title == "Run run"
    assert "Mode paste_all, 5 of 5 steps of 2 images, 0.50 s per step, 60 % accepted" in (
        report.summary
    )
    masks, boxes = report.metrics
    assert (masks.name, boxes.name) == ("masks", "boxes")
    assert masks.values["APr"] == pytest.approx(100.0)
    assert masks.values["APf"] == 0.0
    assert report.metrics_note.startswith("In percent; protocol lvis (300 detections per image)")
    assert [row.name for row in report.categories] == ["red_box", "green_box", "kite"]
    red = report.categories[0]
    assert (red.n_judged, red.n_accepted, red.segm_ap) == (4, 3, pytest.approx(100.0))
    assert report.losses[0].points[:2] == [(1, 4.0), (2, 2.0)]
    assert report.evaluations[0].points[1] == (2, pytest.approx(20.0))
    assert report.notes == []


def test_instances_come_with_picture_and_category(run_folder: Path) -> None:
    report = run_report(run_folder)

    assert [one.instance_id for one in report.best_accepted] == ["103-0"]
    assert [one.instance_id for one in report.worst_rejected] == ["105-0", "103-1"]
    (best,) = report.best_accepted
    assert (best.category, best.frequency, best.prompt) == ("Red box", "r", "")
    assert best.picture_png.startswith(b"\x89PNG")


def test_settings_that_differ_from_the_defaults_are_listed(run_folder: Path) -> None:
    facts = {fact.name: fact.value for fact in run_report(run_folder).facts}

    assert facts["selection.mode"] == '"paste_all"'
    assert facts["schedule.n_steps"] == "5"
    assert "schedule.final_lr_factor" not in facts


def test_what_the_run_was_made_from_is_listed(run_folder: Path) -> None:
    content = {
        "inputs": {
            "training": {"sha256": "abc", "n_instances": 12},
            "validation": None,
            "pool": {"manifest_sha256": "def", "n_instances": 4},
        },
        "versions": {"torch": "2.14.1"},
    }
    (run_folder / "provenance.json").write_text(json.dumps(content))

    facts = {fact.name: fact.value for fact in run_report(run_folder).facts}

    assert facts["training sha256"] == "abc (12 instances)"
    assert facts["pool sha256"] == "def (4 instances)"
    assert facts["torch"] == "2.14.1"
    assert "validation sha256" not in facts


def test_a_pool_that_is_gone_is_said_and_costs_only_the_pictures(
    run_folder: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(run_folder / "recipe.json")
    recipe.override(f"paste.pool={tmp_path / 'gone'}").save(run_folder / "recipe.json")

    report = run_report(run_folder)

    assert report.best_accepted == []
    assert "gone" in report.notes[0]
    assert report.categories


def test_a_changed_pool_is_said(run_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(tiny_data / "pool", pool)
    rows = (pool / "manifest.jsonl").read_text().splitlines(keepends=True)
    (pool / "manifest.jsonl").write_text("".join(row for row in rows if "103-0" not in row))
    recipe = Recipe.load(run_folder / "recipe.json")
    recipe.override(f"paste.pool={pool}").save(run_folder / "recipe.json")

    (note,) = run_report(run_folder).notes

    assert "lacks 1 of the instances that the run judged, such as 103-0" in note


def test_an_unfinished_run_has_a_page_too(run_folder: Path) -> None:
    (run_folder / "results.json").unlink()
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')

    report = run_report(run_folder)

    assert "not come to its end" in report.notes[0]
    assert report.metrics == []
    assert len(report.losses[0].points) == 5


def test_a_run_without_validation_says_so(run_folder: Path) -> None:
    summary = json.loads((run_folder / "results.json").read_text())
    (run_folder / "results.json").write_text(json.dumps(summary | {"evaluation": None}))

    assert "no validation annotations" in run_report(run_folder).notes[0]


def test_steps_that_were_left_out_are_counted(run_folder: Path) -> None:
    assert "left out" not in run_report(run_folder).summary
    summary = json.loads((run_folder / "results.json").read_text())
    (run_folder / "results.json").write_text(json.dumps(summary | {"n_skipped": 2}))

    assert "steps left out as they diverged: 2" in run_report(run_folder).summary


def test_a_group_without_a_category_is_not_a_number(run_folder: Path) -> None:
    summary = json.loads((run_folder / "results.json").read_text())
    summary["evaluation"]["metrics"]["segm"]["apc"] = None
    (run_folder / "results.json").write_text(json.dumps(summary))

    assert math.isnan(run_report(run_folder).metrics[0].values["APc"])


def test_the_command_writes_one_page_into_the_folder(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run_folder)]) == 0

    page = run_folder / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert "Average precision" in page.read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1

    assert "holds no run: there is no recipe.json" in capsys.readouterr().err
