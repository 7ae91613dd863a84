"""Runs that are killed without warning, and started again until they are done."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsgal_train.engine.run import train
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.checkpoint import CheckpointFolder
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

N_STEPS = 8
# What Python reports before it touches a file or a folder; the path comes first.
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
TIMES = ("step_s", "scoring_s", "overhead_share")


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override(
        "data.val_json=", f"schedule.n_steps={N_STEPS}", "checkpoint.every=2", "checkpoint.keep=2"
    )


def in_a_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork; return 0 if it ended, else minus the signal that killed it."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    code = 1
    try:
        work()
        code = 0
    finally:
        # The fork must not go on as a second pytest.
        if code:
            traceback.print_exc()
        os._exit(code)


def kill_at_file_operation(number: int, folder: Path) -> None:
    """Kill this process just before its n-th operation on a file of the run."""
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def outcome(folder: Path) -> tuple[bytes, list[dict[str, float]], list[dict[str, Any]]]:
    rows = read_metrics(folder / "metrics.jsonl")
    kept = [{name: row[name] for name in row if name not in TIMES} for row in rows]
    weights = (folder / "detector.safetensors").read_bytes()
    return weights, kept, read_decisions(folder / "decisions").to_pylist()


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(recipe: Recipe, whole_folder: Path) -> Path:
    """Return the folder of a run that nothing happened to."""
    # From the second time on, this only sums the finished run up again.
    train(recipe, whole_folder)
    return whole_folder


def test_a_run_killed_at_any_file_operation_equals_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path
) -> None:
    # Much to remember: averaged weights, a cache, steps since its refresh, a window of scores.
    recipe = recipe.override(
        "optimizer.ema_decay=0.9",
        "selection.mode=instance",
        "selection.reference=hybrid",
        "selection.refresh_every=3",
        "selection.form=step",
        "selection.policy=quantile",
        "selection.window=8",
    )
    train(recipe, tmp_path / "whole")
    folder = tmp_path / "killed"
    rng = np.random.default_rng(3)
    n_kills = 0

    # Few enough operations that most starts die, enough that every start can reach a checkpoint.
    while n_kills < 40:
        number, every = int(rng.integers(1, 50)), int(rng.integers(1, 4))

        def start(number: int = number, every: int = every) -> None:
            kill_at_file_operation(number, folder)
            # Other places for checkpoints change no number, and leave other parts of the log.
            train(recipe.override(f"checkpoint.every={every}"), folder)

        code = in_a_child(start)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        n_kills += 1
    else:
        pytest.fail("the run never came to its end")

    assert n_kills >= 5
    assert outcome(folder) == outcome(tmp_path / "whole")
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_killed_after_a_step_equals_an_uninterrupted_one(
    step: int, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    def kill(done: int, total: int, detail: str) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(lambda: train(recipe, tmp_path / "killed", progress=kill)) == -signal.SIGKILL

    train(recipe, tmp_path / "killed")

    assert outcome(tmp_path / "killed") == outcome(whole)


def test_a_checkpoint_that_was_being_written_does_not_count(
    recipe: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    save = torch.save

    def half(state: Any, path: Path) -> None:
        save(state, path)
        if state["step"] == 4:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def start() -> None:
        monkeypatch.setattr(torch, "save", half)
        train(recipe, folder)

    assert in_a_child(start) == -signal.SIGKILL
    assert (folder / "checkpoints/step-00000004.tmp").is_dir()
    found = CheckpointFolder(folder / "checkpoints", keep=2).load_newest()
    assert found is not None
    assert found.step == 2

    train(recipe, folder)

    assert outcome(folder) == outcome(whole)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000008",
    ]
