from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.cli import main
from bsgal_train.engine.run import train
from bsgal_train.inspect.compare import compare_runs
from bsgal_train.recipe import Recipe


def evaluation(apr: float, protocol: str = "lvis") -> dict[str, Any]:
    names = ("ap", "ap50", "ap75", "aps", "apm", "apl", "apr", "apc", "apf", "ar")
    return {
        "protocol": {"name": protocol, "max_detections": 300, "per": "image"},
        "metrics": {"segm": {**dict.fromkeys(names, 0.25), "apr": apr, "apl": None}},
        "categories": [
            {"name": "cat", "ap": {"segm": apr}},
            {"name": "dog", "ap": {"segm": 0.5}},
            {"name": "owl", "ap": {"segm": None}},
        ],
    }


def write(folder: Path, recipe: Recipe, apr: float, **files: Any) -> Path:
    folder.mkdir()
    recipe.save(folder / "recipe.json")
    inputs = {"training": {"sha256": "a" * 64}, "pool": files.get("pool")}
    provenance = {"inputs": inputs, "versions": {"torch": files.get("torch", "2.0")}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    results = {
        "accepted_share": files.get("accepted_share"),
        "evaluation": evaluation(apr, files.get("protocol", "lvis")),
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_only_what_differs_is_listed(tmp_path: Path) -> None:
    recipe = Recipe()
    one = write(tmp_path / "a", recipe, 0.1)
    other = write(
        tmp_path / "b",
        recipe.override("schedule.seed=3", "paste.pool=x", "selection.mode=paste_all"),
        0.3,
        pool={"n_instances": 7},
        torch="2.1",
        accepted_share=0.5,
    )

    found = compare_runs(one, other)

    assert found.recipe == {
        "schedule.seed": (0, 3),
        "paste.pool": ("", "x"),
        "selection.mode": ("none", "paste_all"),
    }
    assert found.inputs == {"pool.n_instances": (None, 7)}
    assert found.versions == {"torch": ("2.0", "2.1")}
    assert found.summary == {"accepted_share": (None, 0.5)}
    assert found.metrics["segm apr"] == (0.1, 0.3)
    assert found.metrics["segm ap"] == (0.25, 0.25)
    assert found.categories == {"cat": (0.1, 0.3)}
    assert not found.remarks
    lines = str(found).splitlines()
    assert "  schedule.seed: 0 -> 3" in lines
    cells = {line.split()[1]: line.split()[2:] for line in lines if line.startswith("  segm")}
    assert cells["apr"] == ["10.0", "30.0", "+20.0"]
    assert cells["apl"] == ["-", "-", "-"]


def test_equal_runs_have_no_difference(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, Recipe(), 0.1) for name in "ab")

    found = compare_runs(one, other)

    assert [found.recipe, found.inputs, found.versions, found.summary] == [{}, {}, {}, {}]
    assert "recipe: no difference" in str(found)


def test_results_of_different_protocols_are_not_compared(tmp_path: Path) -> None:
    one = write(tmp_path / "a", Recipe(), 0.1)
    other = write(tmp_path / "b", Recipe(), 0.2, protocol="fixed-ap")

    found = compare_runs(one, other)

    assert not found.metrics
    assert not found.categories
    assert "different protocols must not be compared" in found.remarks[0]


def test_a_run_without_results_is_compared_as_far_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (write(tmp_path / name, Recipe(), 0.1) for name in "ab")
    (other / "results.json").unlink()
    (other / "provenance.json").unlink()

    assert main(["compare", str(one), str(other)]) == 0

    assert f"note: {other} has no results yet" in capsys.readouterr().out


def test_programs_read_it_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "a", Recipe(), 0.1)
    other = write(tmp_path / "b", Recipe().override("schedule.seed=3"), 0.1)

    assert main(["compare", str(one), str(other), "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["recipe"] == {"schedule.seed": [0, 3]}


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 1

    assert "holds no run: there is no recipe.json in it" in capsys.readouterr().err


def test_real_runs_are_compared(tiny_recipe: Recipe, tmp_path: Path) -> None:
    short = tiny_recipe.override("schedule.n_steps=1", "selection.mode=none")
    train(short, tmp_path / "a")
    train(short.override("selection.mode=paste_all"), tmp_path / "b")

    found = compare_runs(tmp_path / "a", tmp_path / "b")

    assert found.recipe == {"selection.mode": ("none", "paste_all")}
    assert "pool.manifest_sha256" in found.inputs
    assert {"bbox ap", "segm apr"} <= set(found.metrics)
