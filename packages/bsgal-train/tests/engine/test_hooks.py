"""Hooks of whole runs: what they see, what they record, how they stop a run and go on with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bsgal_train import FinishedStep, Hook, train
from bsgal_train.engine.hooks import HookList
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.checkpoint import CheckpointFolder
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

InProcesses = Callable[[int, Callable[[int], object]], list[int]]


class Witness(Hook):
    """Keep what every step was."""

    def __init__(self) -> None:
        self.steps: list[FinishedStep] = []

    def after_step(self, step: FinishedStep) -> None:
        self.steps.append(step)


class LossSum(Hook):
    """Add up the losses, and record the sum; `at` has something done after a step."""

    def __init__(self, at: Callable[[FinishedStep], object] = lambda step: None) -> None:
        self.total = torch.zeros((), dtype=torch.float64)
        self._at = at

    def after_step(self, step: FinishedStep) -> None:
        self.total += step.values["loss"]
        step.record({"sum/loss": float(self.total)})
        self._at(step)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


def stop_at(number: int, *, rank: int = 0) -> Callable[[FinishedStep], None]:
    def stop(step: FinishedStep) -> None:
        if step.number == number and processes.rank() == rank:
            step.stop(f"enough in process {rank}")

    return stop


def column(folder: Path, name: str) -> list[tuple[float, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["step"], row[name]) for row in rows if name in row]


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override("data.val_json=")


def test_a_hook_sees_every_step(recipe: Recipe, tmp_path: Path) -> None:
    witness = Witness()

    train(recipe, tmp_path, hooks=[witness])

    assert [step.number for step in witness.steps] == [1, 2, 3, 4, 5]
    losses = [(float(step.number), step.values["loss"]) for step in witness.steps]
    assert losses == column(tmp_path, "loss")
    decisions = [one for step in witness.steps for one in step.decisions]
    assert [one.instance_id for one in decisions] == read_decisions(tmp_path / "decisions").column(
        "instance_id"
    ).to_pylist()
    assert {len(step.samples) for step in witness.steps} == {recipe.schedule.batch_size}
    assert {step.folder for step in witness.steps} == {tmp_path}
    assert all(isinstance(step.detector, nn.Module) for step in witness.steps)


def test_hooks_change_no_number_of_a_run(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "without")
    train(recipe, tmp_path / "with", hooks=[LossSum(), Witness()])

    weights = [
        (tmp_path / one / "detector.safetensors").read_bytes() for one in ("with", "without")
    ]
    assert weights[0] == weights[1]


def test_what_a_hook_records_is_in_the_log_between_its_other_rows_too(
    recipe: Recipe, tmp_path: Path
) -> None:
    train(recipe.override("schedule.log_every=5"), tmp_path, hooks=[LossSum()])

    assert [step for step, _ in column(tmp_path, "sum/loss")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in column(tmp_path, "loss")] == [5]
    assert [step for step, _ in column(tmp_path, "step_s")] == [5]


@pytest.mark.parametrize("name", ["loss", "step_s"])
def test_a_number_that_is_there_is_not_recorded_over(
    name: str, recipe: Recipe, tmp_path: Path
) -> None:
    hook = LossSum(lambda step: step.record({name: 1.0}))

    with pytest.raises(ValueError, match=f"step 1 has {name} already; record it under another"):
        train(recipe, tmp_path, hooks=[hook])


def test_a_later_hook_sees_validation_and_what_earlier_ones_recorded(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    witness = Witness()

    train(tiny_recipe.override("schedule.eval_every=2"), tmp_path, hooks=[LossSum(), witness])

    with_ap = [step.number for step in witness.steps if "val/ap" in step.values]
    assert with_ap == [2, 4]
    assert all("sum/loss" in step.values for step in witness.steps)
    assert not list(tmp_path.glob("predictions-*"))


def test_a_stopped_run_is_finished_and_only_summed_up_again(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override("checkpoint.every=5", "schedule.log_every=5")
    result = train(recipe, tmp_path, hooks=[LossSum(stop_at(3))])

    assert (result.n_steps, result.stopped) == (3, "enough in process 0")
    assert result.evaluation is not None
    summary = json.loads((tmp_path / "results.json").read_text())
    assert (summary["n_steps"], summary["stopped"]) == (3, "enough in process 0")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    # The log says where it ended.
    assert [step for step, _ in column(tmp_path, "loss")] == [3]

    witness = Witness()
    again = train(recipe, tmp_path, hooks=[LossSum(stop_at(3)), witness])

    assert witness.steps == []
    assert (again.n_steps, again.stopped) == (3, "enough in process 0")
    assert again.evaluation == result.evaluation


def test_a_stopped_run_goes_on_without_the_hook_that_stopped_it(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "stopped", hooks=[LossSum(stop_at(3))])

    result = train(recipe, tmp_path / "stopped")

    assert (result.n_steps, result.stopped) == (5, None)
    assert column(tmp_path / "stopped", "loss") == column(tmp_path / "whole", "loss")
    assert "the hook LossSum is no longer there, its state is dropped" in caplog.text


def test_a_hook_that_comes_later_begins_anew(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(recipe, tmp_path, hooks=[LossSum(stop_at(3))])
    anew = LossSum()

    train(recipe, tmp_path, hooks=[LossSum(stop_at(4)), anew])

    # The first of them had stopped the run.
    assert "the hook LossSum-2 begins anew: the checkpoint has no state of it" in caplog.text
    assert float(anew.total) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_run_killed_in_a_hook_goes_on_with_its_state(
    n: int, recipe: Recipe, tmp_path: Path
) -> None:
    def kill(step: FinishedStep) -> None:
        if step.number == n:
            os.kill(os.getpid(), signal.SIGKILL)

    train(recipe, tmp_path / "whole", hooks=[LossSum()])
    child = os.fork()
    if not child:
        try:
            train(recipe, tmp_path / "killed", hooks=[LossSum(kill)])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    hook = LossSum()
    train(recipe, tmp_path / "killed", hooks=[hook])

    assert column(tmp_path / "killed", "sum/loss") == column(tmp_path / "whole", "sum/loss")
    assert float(hook.total) == column(tmp_path / "whole", "sum/loss")[-1][1]


def test_a_hook_of_any_process_stops_all(
    in_processes: InProcesses, recipe: Recipe, tmp_path: Path
) -> None:
    class Exchanging(LossSum):
        """One whose state takes an exchange with the other processes."""

        def state_dict(self) -> dict[str, Any]:
            return {"total": torch.tensor(processes.mean(float(self.total)))}

    def work(rank: int) -> None:
        result = train(recipe, tmp_path / "run", hooks=[Exchanging(stop_at(3, rank=1))])
        assert (result.n_steps, result.stopped) == (3, "enough in process 1")
        # Started again, no process takes a step.
        witness = Witness()
        train(recipe, tmp_path / "run", hooks=[Exchanging(), witness])
        assert witness.steps == []

    assert in_processes(2, work) == [0, 0]
    state = CheckpointFolder(tmp_path / "run/checkpoints", keep=1).load_newest()
    assert state is not None
    assert state.step == 3
    expected = column(tmp_path / "run", "sum/loss")[-1][1]
    assert float(state.states["hooks"]["states"]["Exchanging"]["total"]) == pytest.approx(expected)


def test_a_resumed_run_of_two_processes_goes_on_with_its_hooks(
    in_processes: InProcesses, recipe: Recipe, tmp_path: Path
) -> None:
    def work(rank: int) -> None:
        def fail(step: FinishedStep) -> None:
            if step.number == 3:
                raise RuntimeError("the disk is full")

        train(recipe, tmp_path / "whole", hooks=[LossSum()])
        with pytest.raises(RuntimeError, match="the disk is full"):
            train(recipe, tmp_path / "resumed", hooks=[LossSum(fail)])
        hook = LossSum()
        train(recipe, tmp_path / "resumed", hooks=[hook])
        assert float(hook.total) == column(tmp_path / "whole", "sum/loss")[-1][1]

    assert in_processes(2, work) == [0, 0]
    assert column(tmp_path / "resumed", "sum/loss") == column(tmp_path / "whole", "sum/loss")


@pytest.mark.parametrize("wrong", [print, Witness, "Witness"])
def test_what_is_no_hook_is_refused(wrong: Any, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"objects of subclasses of bsgal_train\.Hook, got"):
        train(recipe, tmp_path / "run", hooks=[wrong])

    assert not (tmp_path / "run").exists()


def test_a_state_that_a_checkpoint_could_not_give_back_is_refused_before_the_first_step(
    recipe: Recipe, tmp_path: Path
) -> None:
    class Careless(Witness):
        def state_dict(self) -> dict[str, Any]:
            return {"where": Path("somewhere")}

    hook = Careless()
    with pytest.raises(TypeError, match="state of the hook Careless must be numbers, text and ten"):
        train(recipe, tmp_path, hooks=[hook])

    assert hook.steps == []


def test_two_hooks_of_a_class_have_a_state_each() -> None:
    first, second = LossSum(), LossSum()
    first.total += 1
    second.total += 2
    state = HookList([first, second]).state_dict()

    others = LossSum(), LossSum()
    HookList(others).load_state_dict(state)

    assert [float(one.total) for one in others] == [1.0, 2.0]
