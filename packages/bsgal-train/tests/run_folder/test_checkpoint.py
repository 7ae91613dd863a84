from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from bsgal_train.errors import OtherModelError
from bsgal_train.run_folder.checkpoint import CheckpointFolder, TrainingState, check_same_model


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        position=2 * step,
        model={"weight": torch.full((2, 3), float(step))},
        states={
            "optimizer": {
                "state": {0: {"step": torch.tensor(1.0)}},
                "param_groups": [{"lr": 0.1}],
            },
            "selection": {"n_accepted": step, "cache": {}},
        },
    )


def test_the_newest_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(state(1))
    folder.save(state(2))

    found = folder.load_newest()

    assert found is not None
    assert (found.step, found.position, found.states["selection"]["n_accepted"]) == (2, 4, 2)
    torch.testing.assert_close(found.model["weight"], torch.full((2, 3), 2.0))
    assert found.states["optimizer"]["param_groups"] == [{"lr": 0.1}]


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


def test_a_step_is_loaded_by_its_number(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(state(1))
    folder.save(state(2))

    assert folder.load(1).step == 1
    with pytest.raises(ValueError, match=r"step-00000003 cannot be read .* the same output folder"):
        folder.load(3)


def test_leftovers_of_a_killed_write_are_cleared_away(tmp_path: Path) -> None:
    leftover = tmp_path / "step-00000007.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")

    CheckpointFolder(tmp_path, keep=1).save(state(8))

    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


def test_a_state_of_another_model_is_named() -> None:
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}

    check_same_model(expected, expected, "here")
    with pytest.raises(
        OtherModelError,
        match=r"there is of another model: 3 of 2 tensors differ \(b is missing; c is unknown; "
        r"a is \(2, 2\), not \(2, 3\)\)",
    ):
        check_same_model({"a": torch.zeros(2, 2), "c": torch.zeros(1)}, expected, "there")


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", keep=1).load_newest() is None
