"""Runs whose draws follow what training finds out."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bsgal_paste import InstancePool
from bsgal_train.engine.run import train
from bsgal_train.engine.steering import Steering
from bsgal_train.errors import DrawTableError
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

N_STEPS = 12
# The pool's instances; of each category one comes in turn, for a period of two steps.
IDS = ("103-0", "103-1", "105-0", "105-1")


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override(
        "data.val_json=",
        f"schedule.n_steps={N_STEPS}",
        "paste.max_instances=6",
        "selection.mode=paste_random",
        "checkpoint.every=3",
    )


def in_turn(pool: InstancePool, step: int) -> NDArray[np.float64]:
    assert [pool.instance_id(position) for position in range(4)] == list(IDS)
    return np.array([step // 2 % 2, 1 - step // 2 % 2, 0, step // 2 % 2], dtype=float)


IN_TURN = Steering(weights=in_turn, publish_every=2)


def outcome(folder: Path) -> tuple[bytes, list[dict[str, float]], list[dict[str, Any]]]:
    rows = read_metrics(folder / "metrics.jsonl")
    for row in rows:
        for name in ("step_s", "scoring_s", "overhead_share"):
            row.pop(name, None)
    weights = (folder / "detector.safetensors").read_bytes()
    return weights, rows, read_decisions(folder / "decisions").to_pylist()


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steered")


@pytest.fixture
def whole(recipe: Recipe, whole_folder: Path) -> Path:
    """Return the folder of a steered run that nothing happened to."""
    # From the second time on, this only sums the finished run up again.
    train(recipe, whole_folder, steering=IN_TURN)
    return whole_folder


def test_what_is_drawn_follows_one_to_two_periods_later(whole: Path) -> None:
    drawn = Counter(
        (row["step"], row["instance_id"]) for row in read_decisions(whole / "decisions").to_pylist()
    )
    for step, instance_id in drawn:
        version = max(0, (step - 1) // 2 - 1)
        # Where a category has no weight, the other takes its place.
        assert instance_id in (("103-0", "105-1") if version % 2 else ("103-1",)), (step, version)
    assert {instance_id for _, instance_id in drawn} == {"103-0", "103-1", "105-1"}


def test_equal_weights_change_nothing(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "plain")
    alike = Steering(weights=lambda pool, step: np.ones(len(pool)), publish_every=3)
    train(recipe, tmp_path / "alike", steering=alike)

    assert outcome(tmp_path / "alike") == outcome(tmp_path / "plain")


@pytest.mark.parametrize("n_workers", [1, 3])
def test_loader_processes_change_nothing(
    n_workers: int, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    train(recipe.override(f"data.n_workers={n_workers}"), tmp_path, steering=IN_TURN)

    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_a_run_killed_again_and_again_equals_an_uninterrupted_one(
    n_workers: int, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    recipe = recipe.override(f"data.n_workers={n_workers}")

    def kill(done: int, total: int, detail: str) -> None:
        # Before the first checkpoint; then it goes on from step 3, amid a period, 6 and 9.
        if done in (1, 4, 8, 11):
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(4):
        child = os.fork()
        if not child:
            try:
                train(recipe, tmp_path, progress=kill, steering=IN_TURN)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    train(recipe, tmp_path, steering=IN_TURN)

    assert outcome(tmp_path) == outcome(whole)


def test_a_step_that_is_left_out_is_published_like_any_other(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bsgal_train.engine.step import DivergedError, StepOutcome, TrainingSteps

    take = TrainingSteps.take

    def diverging(steps: TrainingSteps, samples: Any) -> StepOutcome:
        if steps.n_done == 3:
            raise DivergedError("step 4", StepOutcome({}, (), {"lr": 0.0}))
        return take(steps, samples)

    monkeypatch.setattr(TrainingSteps, "take", diverging)
    published: list[int] = []

    def noted(pool: InstancePool, step: int) -> NDArray[np.float64]:
        published.append(step)
        return in_turn(pool, step)

    steering = Steering(weights=noted, publish_every=4)
    train(recipe.override("optimizer.max_skipped_steps=1"), tmp_path, steering=steering)

    assert published == [0, 4, 8, 12]


def test_gradients_in_two_parts_and_two_processes_draw_the_same(
    recipe: Recipe, whole: Path, tmp_path: Path, in_processes: Any
) -> None:
    # Its mean is another than that of one process in the last bits; the draws are the same.
    def drawn(folder: Path) -> list[tuple[Any, ...]]:
        rows = read_decisions(folder / "decisions").to_pylist()
        return sorted((row["step"], row["instance_id"]) for row in rows)

    train(recipe.override("schedule.n_accumulate=2"), tmp_path / "parts", steering=IN_TURN)
    assert drawn(tmp_path / "parts") == drawn(whole)

    def work(rank: int) -> None:
        train(recipe, tmp_path / "two", steering=IN_TURN)

    assert in_processes(2, work) == [0, 0]
    assert drawn(tmp_path / "two") == drawn(whole)


def test_processes_with_other_weights_are_told(
    recipe: Recipe, tmp_path: Path, in_processes: Any
) -> None:
    def work(rank: int) -> None:
        own = Steering(
            weights=lambda pool, step: np.full(len(pool), 1 + rank * step), publish_every=2
        )
        with pytest.raises(DrawTableError, match="different weights for version 1"):
            train(recipe, tmp_path, steering=own)

    assert in_processes(2, work) == [0, 0]


def test_a_run_does_not_go_on_with_other_steering(recipe: Recipe, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int, detail: str) -> None:
        if done == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "steered", progress=stop, steering=IN_TURN)
    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "plain", progress=stop)

    with pytest.raises(ValueError, match="run with steering, and this one is without; go on with"):
        train(recipe, tmp_path / "steered")
    with pytest.raises(ValueError, match="run without steering, and this one is with"):
        train(recipe, tmp_path / "plain", steering=IN_TURN)
    with pytest.raises(ValueError, match=r"\(publish_every, n_instances\) = \(2, 4\), this run"):
        train(recipe, tmp_path / "steered", steering=Steering(weights=in_turn))


def test_steering_needs_a_pool(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this run pastes none; set paste\.pool"):
        train(recipe.override("selection.mode=none"), tmp_path, steering=IN_TURN)


def test_loader_processes_that_will_wait_are_foretold(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(recipe.override("data.n_workers=2", "schedule.n_steps=1"), tmp_path, steering=IN_TURN)
    assert "work up to 4 steps ahead and will wait for draw weights" in caplog.text
