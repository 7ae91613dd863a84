"""Images and pool instances that cannot be read: a run says which, why and how often."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.engine.run import train
from bsgal_train.inspect.report import run_report
from bsgal_train.recipe import Recipe

InProcesses = Callable[[int, Callable[[int], object]], list[int]]


@pytest.fixture
def damaged(tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path) -> Recipe:
    """A recipe with a broken training image, a truncated validation image and a broken instance."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_data, folder)
    (folder / "train/1.png").write_bytes(b"no image")
    whole = (folder / "val/2.png").read_bytes()
    (folder / "val/2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "pool/instances/103/103-0.png").write_bytes(b"no image")
    return tiny_recipe.override(
        f"data.train_json={folder / 'train.json'}",
        f"data.val_json={folder / 'val.json'}",
        f"data.image_root={folder}",
        f"paste.pool={folder / 'pool'}",
        "data.n_workers=2",
        "schedule.n_steps=6",
        "schedule.batch_size=4",
    )


def skipped_files(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads((folder / "results.json").read_text())[
        "skipped_files"
    ]
    return found


def test_results_say_what_could_not_be_read_in_all_processes_and_starts(
    damaged: Recipe, in_processes: InProcesses, tmp_path: Path
) -> None:
    def stop(done: int, total: int, detail: str) -> None:
        # After a checkpoint and a step that will be done again.
        if done == 5:
            raise RuntimeError("the machine went down")

    def resumed(rank: int) -> None:
        folder = tmp_path / "two"
        with pytest.raises(RuntimeError, match="went down"):
            train(damaged, folder, progress=stop)
        train(damaged, folder)

    train(damaged, tmp_path / "one")
    assert in_processes(2, resumed) == [0, 0]

    one, two = skipped_files(tmp_path / "one"), skipped_files(tmp_path / "two")
    assert one == two
    image, instance = sorted(one["training"])
    assert "train/1.png cannot be read: " in image
    assert "pool instance 103-0 cannot be read" in instance
    # Of 24 samples and as many reference images, from six images and two categories.
    assert all(count > 2 for count in one["training"].values())
    ((message, count),) = one["validation"].items()
    assert "val/2.png cannot be read: " in message
    assert count == 1

    training, validation = run_report(tmp_path / "two").notes[:2]
    assert training.startswith("In training, 2 files could not be read: ")
    assert f"{image} ({one['training'][image]} times)" in training
    assert validation == f"In validation, 1 files could not be read: {message} (1 times)."


def test_a_whole_data_set_leaves_nothing_to_say(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(tiny_recipe.override("schedule.n_steps=1"), tmp_path)

    assert skipped_files(tmp_path) == {"training": {}, "validation": {}}
    assert not any("could not be read" in note for note in run_report(tmp_path).notes)


def test_a_report_names_the_most_frequent_and_counts_the_rest(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    tiny_recipe.save(tmp_path / "recipe.json")
    counts = {f"{number}.jpg cannot be read": number for number in range(1, 31)}
    results: dict[str, Any] = {"skipped_files": {"training": counts}, "evaluation": None}
    (tmp_path / "results.json").write_text(json.dumps(results))

    (note,) = (note for note in run_report(tmp_path).notes if "could not be read" in note)

    assert note.startswith("In training, 30 files could not be read: 30.jpg cannot be read (30")
    assert "11.jpg" in note
    assert "10.jpg" not in note
    assert note.endswith("; and 10 more.")
