from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from bsgal_train.checkpoint import CheckpointFolder, TrainingState


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        position=2 * step,
        model={"weight": torch.full((2, 3), float(step))},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        optimizer_step={"scaler": {}, "average": None},
        selection={"n_accepted": step, "cache": {}},
    )


def test_the_newest_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(state(1))
    folder.save(state(2))

    found = folder.load_newest()

    assert found is not None
    assert (found.step, found.position, found.selection["n_accepted"]) == (2, 4, 2)
    torch.testing.assert_close(found.model["weight"], torch.full((2, 3), 2.0))
    assert found.optimizer["param_groups"] == [{"lr": 0.1}]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2, 3):
        folder.save(state(step))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors", "sha256.json"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(state(1))
    damaged = folder.save(state(2)) / name
    damaged.write_bytes(damaged.read_bytes()[:-7])

    with caplog.at_level(logging.WARNING):
        found = folder.load_newest()

    assert found is not None
    assert found.step == 1
    assert "step-00000002" in caplog.text


def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "step-00000009.tmp").mkdir(parents=True)

    assert CheckpointFolder(tmp_path, keep=1).load_newest() is None


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", keep=1).load_newest() is None
