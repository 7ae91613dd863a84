"""Several processes on one run: two take the steps that one takes on the same batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bsgal_train.detector.federated import FederatedClasses
from bsgal_train.detector.row_losses import Rows, report
from bsgal_train.engine.run import train
from bsgal_train.errors import LostProcessError
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

InProcesses = Callable[[int, Callable[[int], object]], list[int]]


def test_gradients_are_the_mean_and_missing_ones_count_as_zero(in_processes: InProcesses) -> None:
    def work(rank: int) -> None:
        used, half_used, unused = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
        used.grad = torch.full((2, 3), 1.0 + 2 * rank)
        if rank == 1:
            half_used.grad = torch.full((2, 3), 4.0)
        processes.average_gradients([used, half_used, unused])
        assert used.grad is not None
        assert half_used.grad is not None
        assert (used.grad == 2.0).all()
        assert (half_used.grad == 2.0).all()
        assert unused.grad is None

    assert in_processes(2, work) == [0, 0]


def test_many_tensors_are_averaged_as_one_by_one(
    in_processes: InProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Forces several exchanges, one of them larger than what should travel together.
    monkeypatch.setattr(processes, "_MAX_ELEMENTS_TOGETHER", 10)

    def work(rank: int) -> None:
        sizes = (3, 4, 25, 1, 9, 2)
        tensors = [torch.arange(size) * (1.0 + rank) for size in sizes]
        processes.average(tensors)
        for size, tensor in zip(sizes, tensors, strict=True):
            assert (tensor == torch.arange(size) * 1.5).all()

    assert in_processes(2, work) == [0, 0]


def test_the_first_process_goes_before_the_others(
    in_processes: InProcesses, tmp_path: Path
) -> None:
    def work(rank: int) -> None:
        with processes.first_before_others():
            if rank == 0:
                (tmp_path / "made").touch()
            assert (tmp_path / "made").exists()
        assert processes.broadcast(rank) == 0
        assert processes.gather([rank]) == [[0], [1], [2]]
        assert list(processes.share(7)) == [[0, 1], [2, 3], [4, 5, 6]][rank]

    assert in_processes(3, work) == [0, 0, 0]


def test_a_process_that_dies_is_missed_by_the_others(in_processes: InProcesses) -> None:
    def work(rank: int) -> None:
        processes.wait_for_all()
        if rank == 1:
            os._exit(9)
        with pytest.raises(LostProcessError, match="one of them has ended"):
            processes.total(1.0)

    assert in_processes(2, work) == [0, 9]


def test_alone_every_exchange_is_the_identity() -> None:
    tensor = torch.ones(2)
    processes.average([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert processes.total(3) == 3.0
    assert processes.gather([1, 2]) == [[1, 2]]
    assert processes.broadcast("x") == "x"
    assert list(processes.share(3)) == [0, 1, 2]


MODES = {
    "paper": ("detector.drop_path=0.9",),
    "paste_random": ("detector.federated_classes=2", "selection.kept_share=0.5"),
    "instance": (
        "optimizer.ema_decay=0.5",
        "selection.reference=hybrid",
        "selection.refresh_every=2",
        "selection.policy=quantile",
        "selection.window=8",
    ),
}


def test_federated_classes_are_drawn_together(in_processes: InProcesses) -> None:
    def work(rank: int) -> None:
        torch.manual_seed(rank)
        own = FederatedClasses([5] * 40, n_classes=10).draw(torch.tensor([rank, 7 + rank, 40]))
        assert {0, 1, 7, 8} <= set(own.tolist())
        assert len(own) == 10
        assert processes.gather(own.tolist()) == [own.tolist()] * 2

    assert in_processes(2, work) == [0, 0]


def test_a_loss_is_that_of_the_whole_batch_where_a_process_has_no_rows(
    in_processes: InProcesses,
) -> None:
    def work(rank: int) -> None:
        n = 3 * (1 - rank)
        nowhere = torch.zeros(n, dtype=torch.int64)
        rows = Rows(source=nowhere, object=nowhere, image=nowhere, boxes_xyxy=torch.zeros(n, 4))
        whole, empty = (
            report(name=name, kind="cls", per_row=torch.ones(n), count=count, rows=rows)
            for name, count in (("whole", n), ("empty", 0))
        )
        assert processes.mean(float(whole)) == 1.0
        assert float(empty) == 2.0 * n

    assert in_processes(2, work) == [0, 0]


def test_a_batch_that_cannot_be_shared_is_refused(
    in_processes: InProcesses, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    def work(rank: int) -> None:
        with pytest.raises(
            ValueError, match=r"schedule\.batch_size=3 cannot be shared evenly by 2"
        ):
            train(tiny_recipe.override("schedule.batch_size=3"), tmp_path / "run")

    assert in_processes(2, work) == [0, 0]


def rounded(rows: list[dict[str, Any]]) -> Any:
    times = ("step_s", "scoring_s", "overhead_share")
    return [
        {
            name: pytest.approx(value, rel=2e-4, abs=1e-6) if isinstance(value, float) else value
            for name, value in row.items()
            if name not in times
        }
        for row in rows
    ]


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one_with_the_double_batch(
    in_processes: InProcesses, mode: str, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(
        f"selection.mode={mode}", "schedule.batch_size=4", "schedule.n_steps=4", *MODES[mode]
    )
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    train(recipe, alone)

    assert in_processes(2, lambda rank: train(recipe, shared)) == [0, 0]

    expected_rows = rounded(read_metrics(alone / "metrics.jsonl"))
    rows = read_metrics(shared / "metrics.jsonl")
    assert [
        {name: row[name] for name in expected}
        for row, expected in zip(rows, expected_rows, strict=True)
    ] == expected_rows
    decisions = read_decisions(alone / "decisions").to_pylist()
    assert decisions
    assert read_decisions(shared / "decisions").to_pylist() == rounded(decisions)
    weights = load_file(shared / "detector.safetensors")
    for name, value in load_file(alone / "detector.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    assert sorted(p.name for p in shared.iterdir()) == sorted(p.name for p in alone.iterdir())


def test_alone_a_process_asks_nobody(in_processes: InProcesses) -> None:
    def work(rank: int) -> None:
        if rank == 0:
            with processes.alone():
                assert (processes.n_processes(), processes.rank()) == (1, 0)
                assert processes.total(3.0) == 3.0
                assert processes.gather([rank]) == [[0]]
        assert processes.gather([rank]) == [[0], [1]]

    assert in_processes(2, work) == [0, 0]
