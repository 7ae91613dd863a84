from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bsgal_train.cli import main
from bsgal_train.demo.settings import DemoSettings
from bsgal_train.recipe import Recipe


@pytest.fixture
def recipe_json(tiny_recipe: Recipe, tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    tiny_recipe.save(path)
    return str(path)


def test_train_and_eval_print_a_table(
    recipe_json: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train", "--recipe", recipe_json, "--out", str(out), "--threads", "1"]) == 0
    trained = capsys.readouterr()
    assert main(["eval", "--detector", str(out)]) == 0
    evaluated = capsys.readouterr()

    assert "APr" in trained.out
    assert "training: 5/5" in trained.err
    assert evaluated.out.strip() in trained.out


def test_an_override_reaches_the_run(recipe_json: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = ["--set", "schedule.n_steps=2", "--set", "selection.mode=none"]
    assert main(["train", "--recipe", recipe_json, *changes, "--out", str(out)]) == 0

    saved = json.loads((out / "recipe.json").read_text())
    assert (saved["schedule"]["n_steps"], saved["selection"]["mode"]) == (2, "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "coco_min"], "the nearest is `coco_mini`"),
        (["--set", "schedule.n_step=2"], "the nearest is `schedule.n_steps`"),
        (["--set", "data.train_json=nowhere.json"], "nowhere.json"),
        (["--threads", "-1"], "--threads"),
    ],
)
def test_a_mistake_is_one_readable_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "out"), *arguments]) == 1

    error = capsys.readouterr().err
    assert error.startswith("bsgal-train: ")
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_check_data_reports_what_a_run_would_stumble_over(
    recipe_json: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", "--recipe", recipe_json, "--read-images"]) == 0
    assert "errors: 0" in capsys.readouterr().out

    assert main(["check-data", "--recipe", recipe_json, "--set", "data.val_json=gone.json"]) == 1
    assert "gone.json" in capsys.readouterr().out


def test_check_data_looks_through_the_built_in_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check-data", "--set", "data.builtin_root=data"]) == 0
    assert "errors: 0" in capsys.readouterr().out

    next((tmp_path / "data").rglob("*.png")).unlink()
    assert main(["check-data", "--set", "data.builtin_root=data"]) == 1


def test_every_setting_of_the_demo_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])

    shown = capsys.readouterr().out
    for field in dataclasses.fields(DemoSettings):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_an_interrupted_demo_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(folder: Path, settings: DemoSettings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bsgal_train.demo.loop.run_demo", interrupted)

    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err


def test_bad_usage_exits_with_two() -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["train"])

    assert exit_info.value.code == 2


@pytest.mark.parametrize(
    "command",
    [
        *("train", "eval", "check-data", "data", "report", "replay", "compare", "doctor"),
        *("setup-detectron2", "demo"),
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])

    assert exit_info.value.code == 0
    assert "usage: bsgal-train" in capsys.readouterr().out
