"""Runs that leave out steps which diverge, as their recipe allows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bsgal_train.engine.run import train
from bsgal_train.engine.step import DivergedError, TrainingSteps
from bsgal_train.errors import LostProcessError
from bsgal_train.inspect.replay import replay
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

Spoil = Callable[..., None]
InProcesses = Callable[[int, Callable[[int], object]], list[int]]


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override("data.val_json=", "selection.mode=instance", "checkpoint.every=1")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Return a function that gives a classifier a NaN in some steps, in one of the processes."""
    take = TrainingSteps.take

    def spoil_steps(steps: Collection[int], *, module: str = "cls_score", rank: int = 0) -> None:
        def spoilt(self: Any, samples: Sequence[Any]) -> Any:
            if self.n_done + 1 not in steps or processes.rank() != rank:
                return take(self, samples)
            (found,) = (m for name, m in self.detector.named_modules() if name.endswith(module))
            handle = found.register_forward_hook(lambda _, __, output: output * float("nan"))
            try:
                return take(self, samples)
            finally:
                handle.remove()

        monkeypatch.setattr(TrainingSteps, "take", spoilt)

    return spoil_steps


def steps_of(folder: Path) -> list[int]:
    return sorted(set(read_decisions(folder / "decisions").column("step").to_pylist()))


def test_nothing_changes_in_a_step_that_is_left_out(
    recipe: Recipe, spoil: Spoil, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil([4])

    train(recipe.override("optimizer.max_skipped_steps=1", "optimizer.ema_decay=0.5"), tmp_path)

    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["n_skipped"] for row in rows] == [0, 0, 0, 1, 1]
    assert ["loss" in row for row in rows] == [True, True, True, False, True]
    assert 4 not in steps_of(tmp_path)
    before, after, last = (
        load_file(tmp_path / f"checkpoints/step-{step:08d}/model.safetensors") for step in (3, 4, 5)
    )
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not all(torch.equal(last[name], before[name]) for name in before)
    assert all(bool(value.isfinite().all()) for value in last.values())
    (record,) = (tmp_path / "nonfinite").iterdir()
    assert record.name == "step-00000004-process-0.json"
    assert json.loads((tmp_path / "results.json").read_text())["n_skipped"] == 1
    assert "left out step 4, which diverged: step 4: not finite" in caplog.text


def test_one_step_more_than_the_recipe_allows_ends_the_run(
    recipe: Recipe, spoil: Spoil, tmp_path: Path
) -> None:
    spoil([2, 4])

    with pytest.raises(DivergedError, match=r"^step 4: not finite"):
        train(recipe.override("optimizer.max_skipped_steps=1"), tmp_path)

    assert len(list((tmp_path / "nonfinite").iterdir())) == 2


def test_a_resumed_run_goes_on_counting(recipe: Recipe, spoil: Spoil, tmp_path: Path) -> None:
    recipe = recipe.override("optimizer.max_skipped_steps=2")
    spoil([2, 4])

    def stop(done: int, total: int, detail: str) -> None:
        if done == 3:
            raise RuntimeError("the machine went down")

    train(recipe, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="went down"):
        train(recipe, tmp_path / "resumed", progress=stop)
    train(recipe, tmp_path / "resumed")

    whole, resumed = (
        load_file(tmp_path / one / "detector.safetensors") for one in ("whole", "resumed")
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    rows = read_metrics(tmp_path / "resumed/metrics.jsonl")
    assert [row["n_skipped"] for row in rows] == [0, 1, 1, 2, 2]


def test_a_replay_leaves_out_what_the_run_left_out(
    recipe: Recipe, spoil: Spoil, tmp_path: Path
) -> None:
    spoil([2])
    train(recipe.override("optimizer.max_skipped_steps=1", "checkpoint.every=5"), tmp_path)

    after, itself = replay(tmp_path, 4), replay(tmp_path)

    assert (after.resumed_step, after.differences) == (0, ())
    assert (itself.step, itself.differences) == (2, ())
    assert itself.message is not None


@pytest.mark.parametrize(
    "changes",
    [
        ("selection.mode=paste_all",),
        ("selection.mode=paper",),
        ("selection.mode=batch",),
        ("selection.mode=instance",),
        ("selection.mode=instance", "selection.reference=hybrid", "selection.refresh_every=2"),
    ],
    ids=" ".join,
)
def test_all_processes_leave_out_what_diverges_in_one(
    changes: tuple[str, ...],
    in_processes: InProcesses,
    recipe: Recipe,
    spoil: Spoil,
    tmp_path: Path,
) -> None:
    recipe = recipe.override("optimizer.max_skipped_steps=1", *changes)
    spoil([3], rank=1)

    codes = in_processes(2, lambda rank: train(recipe, tmp_path / "run"))

    assert codes == [0, 0]
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["n_skipped"] for row in rows] == [0, 0, 1, 1, 1]
    records = sorted((tmp_path / "run/nonfinite").iterdir())
    messages = [json.loads(path.read_text())["message"] for path in records]
    assert len(messages) == 2
    assert all(message.startswith("step 3: ") for message in messages)


def test_what_only_one_process_knows_of_ends_the_run(
    in_processes: InProcesses, recipe: Recipe, spoil: Spoil, tmp_path: Path
) -> None:
    recipe = recipe.override("optimizer.max_skipped_steps=1", "selection.mode=paste_all")
    # detectron2 itself refuses proposals that are not finite.
    spoil([3], module="rpn_head.objectness_logits", rank=1)

    def work(rank: int) -> None:
        error = DivergedError if rank == 1 else LostProcessError
        with pytest.raises(error):
            train(recipe, tmp_path / "run")
        # As a process that fails does; the other one is told by it.
        os._exit(0)

    assert in_processes(2, work) == [0, 0]
