"""Steps of real runs, taken again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.cli import main
from bsgal_train.engine.run import train
from bsgal_train.engine.step import DivergedError
from bsgal_train.errors import AnnotationError
from bsgal_train.inspect.replay import Replay, replay
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.checkpoint import CheckpointFolder
from bsgal_train.run_folder.run_log import read_metrics

POISONED = "roi_heads.mask_head.predictor.bias"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def poison(folder: Path, step: int, name: str) -> None:
    """Put a nan into a weight of a checkpoint, as broken memory might."""
    checkpoints = CheckpointFolder(folder / "checkpoints", keep=9)
    state = checkpoints.load(step)
    state.model[name][0] = float("nan")
    checkpoints.save(state)


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override("data.val_json=", "selection.mode=instance")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture
def finished(recipe: Recipe, folders: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run of five steps, with the checkpoints of steps 2, 4 and 5."""
    if not (folders / "finished").exists():
        train(recipe, folders / "finished")
    return shutil.copytree(folders / "finished", tmp_path / "finished")


@pytest.fixture
def diverged(recipe: Recipe, folders: Path, tmp_path: Path) -> Path:
    """Return a copy of a run whose third step met a nan."""
    folder = folders / "diverged"
    if not folder.exists():
        train(recipe.override("schedule.n_steps=2"), folder)
        (folder / "recipe.json").unlink()
        poison(folder, 2, POISONED)
        with pytest.raises(DivergedError, match=r"step 3: not finite: .*loss_mask"):
            train(recipe, folder)
    return shutil.copytree(folder, tmp_path / "diverged")


def assert_the_same(found: Replay) -> None:
    assert found.compared
    assert found.differences == ()
    assert all(repr(then) == repr(now) for then, now in found.losses.values())


def test_a_step_that_diverged_is_reproduced_and_the_origin_named(diverged: Path) -> None:
    before = files(diverged)

    found = replay(diverged)

    assert_the_same(found)
    assert (found.step, found.resumed_step) == (3, 2)
    assert str(found.losses["loss_mask"][1]) == "nan"
    assert found.message is not None
    assert found.bad_weights == (POISONED,)
    assert found.first_output is not None
    assert found.first_output.module == POISONED.removesuffix(".bias")
    assert found.first_output.finite_inputs
    assert [one.name for one in found.bad_losses] == ["loss_mask"]
    record = json.loads((diverged / "nonfinite/step-00000003-process-0.json").read_text())
    assert [one.image_id for one in found.samples] == [one["image_id"] for one in record["samples"]]
    assert [one.verdict for one in found.decisions] == [
        one["verdict"] for one in record["decisions"]
    ]
    assert files(diverged) == before


def test_a_run_that_diverged_before_its_first_checkpoint_is_taken_from_the_start(
    recipe: Recipe, tmp_path: Path
) -> None:
    recipe = recipe.override("optimizer.lr=1e30", "selection.mode=paste_all")
    with pytest.raises(DivergedError):
        train(recipe, tmp_path)

    found = replay(tmp_path)

    assert_the_same(found)
    assert found.resumed_step == 0
    assert found.step > 1
    # The weights are huge and finite; what is computed with them is not.
    assert found.bad_weights == ()
    assert found.first_output is not None
    assert found.first_output.module.startswith("backbone.")


@pytest.mark.parametrize("mode", ["none", "paper", "batch", "image", "oracle"])
def test_a_finite_step_is_the_same_in_every_mode(mode: str, recipe: Recipe, tmp_path: Path) -> None:
    train(
        recipe.override(
            f"selection.mode={mode}", "schedule.n_steps=2", "checkpoint.every=1", "data.crop_px=48"
        ),
        tmp_path,
    )

    found = replay(tmp_path, 2)

    assert_the_same(found)
    assert found.resumed_step == 1
    assert bool(found.decisions) == (mode != "none")
    assert found.message is None
    assert found.first_output is None
    assert found.first_gradient is None
    assert not found.bad_losses
    assert not found.bad_weights


@pytest.mark.parametrize(("step", "resumed_step"), [(2, 0), (4, 2), (5, 4)])
def test_a_step_is_reached_from_the_newest_checkpoint_before_it(
    step: int, resumed_step: int, finished: Path
) -> None:
    found = replay(finished, step)

    assert_the_same(found)
    assert found.resumed_step == resumed_step


def test_a_damaged_checkpoint_is_passed_over(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (finished / "checkpoints/step-00000002/state.pt").write_bytes(b"damaged")

    found = replay(finished, 3)

    assert_the_same(found)
    assert found.resumed_step == 0
    assert "skipped damaged checkpoint" in caplog.text


def test_what_differs_is_said(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_metrics(finished / "metrics.jsonl")
    rows[4]["loss_cls"] *= 1.5
    (finished / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = replay(finished, 5)

    (difference,) = found.differences
    assert difference.startswith("loss_cls: ")
    assert "relative change 3.3e-01" in difference
    assert main(["replay", str(finished), "--step", "5"]) == 1
    assert "does not come out as recorded" in capsys.readouterr().out


def test_a_step_of_which_nothing_is_recorded_is_taken_all_the_same(finished: Path) -> None:
    (finished / "metrics.jsonl").unlink()
    shutil.rmtree(finished / "decisions")

    found = replay(finished, 5)

    assert not found.compared
    assert "nothing is recorded of this step" in str(found)


def test_the_command_line_prints_everything(
    diverged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(diverged)]) == 0
    text = capsys.readouterr().out
    assert main(["replay", str(diverged), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    assert "comes out as recorded, bit for bit" in text
    assert f"not finite before the step: {POISONED}" in text
    for sample in printed["samples"]:
        assert f"image {sample['image_id']} (" in text
        assert all(instance_id in text for instance_id in sample["instance_ids"])
    assert printed["losses"]["loss_mask"] == ["nan", "nan"]


# What cannot be replayed.


@pytest.mark.parametrize(
    ("step", "message"),
    [(None, r"no step of the run in .* has diverged"), (0, r"must be 1 \.\. 5"), (6, "got 6")],
)
def test_a_step_that_is_not_there_is_refused(
    step: int | None, message: str, finished: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        replay(finished, step)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        replay(tmp_path)


def test_a_changed_recipe_is_refused(diverged: Path) -> None:
    path = diverged / "recipe.json"
    Recipe.load(path).override("optimizer.lr=1e-4").save(path)

    with pytest.raises(ValueError, match=r"optimizer\.lr=0\.001 \(now 0\.0001\)"):
        replay(diverged)


def test_a_damaged_record_is_named(diverged: Path) -> None:
    path = diverged / "nonfinite/step-00000003-process-0.json"
    path.write_text(path.read_text()[:100])

    with pytest.raises(ValueError, match=r"process-0\.json is no record of a step"):
        replay(diverged)


def test_moved_data_is_found_where_it_is_said_to_be(
    finished: Path, tiny_data: Path, tmp_path: Path
) -> None:
    path = finished / "recipe.json"
    moved = Recipe.load(path).override("data.train_json=gone.json", "paste.pool=gone")
    moved.save(path)
    with pytest.raises(AnnotationError, match=r"gone\.json"):
        replay(finished, 5)

    found = replay(
        finished,
        5,
        locations=[f"data.train_json={tiny_data / 'train.json'}", f"paste.pool={tiny_data}/pool"],
    )

    assert_the_same(found)


def test_other_data_is_refused(finished: Path, tiny_data: Path, tmp_path: Path) -> None:
    pool = shutil.copytree(tiny_data / "pool", tmp_path / "pool")
    rows = (pool / "manifest.jsonl").read_text().splitlines(keepends=True)
    (pool / "manifest.jsonl").write_text("".join(rows[1:]))

    with pytest.raises(ValueError, match="made from other data: pool changed"):
        replay(finished, 5, locations=[f"paste.pool={pool}"])


def test_only_places_may_be_set(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"only data\.builtin_root.* got `optimizer\.lr`"):
        replay(finished, 5, locations=["optimizer.lr=1"])


def test_a_step_on_the_way_that_diverges_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(finished, 2, POISONED)

    with pytest.raises(DivergedError, match="step 3: not finite"):
        replay(finished, 4)


def test_progress_is_told_on_the_way(finished: Path) -> None:
    told: list[Any] = []
    replay(finished, 4, progress=lambda *values: told.append(values))

    assert told == [(1, 2, "")]
