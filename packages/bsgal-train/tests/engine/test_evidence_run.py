"""Runs that judge by evidence, and draw by it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsgal_score import EvidenceTable
from bsgal_train.cli import main
from bsgal_train.engine.run import train
from bsgal_train.inspect.run_evidence import run_evidence
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

N_STEPS = 12
IDS = ["103-0", "103-1", "105-0", "105-1"]


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override(
        "data.val_json=",
        f"schedule.n_steps={N_STEPS}",
        "paste.max_instances=6",
        "selection.mode=instance",
        # Of a handful of real objects no more can be said.
        "selection.alpha=0.3",
        "selection.min_looks=1",
        "selection.publish_every=2",
        "checkpoint.every=3",
    )


def outcome(folder: Path) -> tuple[bytes, list[dict[str, float]], list[dict[str, Any]]]:
    rows = read_metrics(folder / "metrics.jsonl")
    for row in rows:
        for name in ("step_s", "scoring_s", "overhead_share"):
            row.pop(name, None)
    weights = (folder / "detector.safetensors").read_bytes()
    return weights, rows, read_decisions(folder / "decisions").to_pylist()


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture
def whole(recipe: Recipe, whole_folder: Path) -> Path:
    # From the second time on, this only sums the finished run up again.
    train(recipe, whole_folder)
    return whole_folder


def test_verdicts_are_p_values_at_the_level(whole: Path) -> None:
    rows = read_decisions(whole / "decisions").to_pylist()

    verdicts = {row["verdict"] for row in rows}
    assert verdicts <= {"accept", "reject", "no_evidence"}
    assert "reject" in verdicts
    for row in rows:
        if row["contribution"] is not None:
            assert row["threshold"] == pytest.approx(0.3)
            assert (row["verdict"] == "reject") == (row["contribution"] <= 0.3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_run_killed_again_and_again_equals_an_uninterrupted_one(
    n_workers: int, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    recipe = recipe.override(f"data.n_workers={n_workers}")

    def kill(done: int, total: int, detail: str) -> None:
        if done in (1, 4, 8):
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        child = os.fork()
        if not child:
            try:
                train(recipe, tmp_path, progress=kill)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    train(recipe, tmp_path)

    assert outcome(tmp_path) == outcome(whole)
    mine, other = run_evidence(tmp_path), run_evidence(whole)
    assert mine.p_values.tobytes() == other.p_values.tobytes()


def test_what_a_run_has_found_out_is_written(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "values.parquet"
    assert main(["evidence", str(whole), "--out", str(out)]) == 0

    table = EvidenceTable.from_parquet(out)
    assert table.ids == IDS
    drawn = Counter(row["instance_id"] for row in read_decisions(whole / "decisions").to_pylist())
    assert 0 < table.looks.sum() <= sum(drawn.values())
    assert set(table.evidence) == {"prototype", "outline"}
    assert main(["evidence", str(whole), "--out", str(out)]) == 1


def write_table(path: Path, verdicts: list[str], looks: int) -> None:
    n = len(verdicts)
    evidence = {"prototype": np.zeros(n, dtype=np.float32)}
    p_values = np.where(np.array(verdicts) == "reject", 0.001, 0.9)
    EvidenceTable(
        IDS[:n], np.full(n, looks), evidence, p_values, np.array(verdicts), 0.3, 1
    ).to_parquet(path)


def test_a_run_begins_with_what_was_known_before(recipe: Recipe, tmp_path: Path) -> None:
    # More looks than the run can have: what is known stays.
    write_table(tmp_path / "before.parquet", ["reject", "accept", "accept", "reject"], 1000)
    opened = recipe.override(f"selection.evidence={tmp_path / 'before.parquet'}")
    train(opened, tmp_path / "steered")
    train(opened.override("selection.steer=false"), tmp_path / "rejecting")

    steered, rejecting = (
        read_decisions(tmp_path / name / "decisions").to_pylist()
        for name in ("steered", "rejecting")
    )
    drawn = Counter(row["instance_id"] for row in steered)
    assert drawn["103-0"] + drawn["105-1"] <= 0.1 * (drawn["103-1"] + drawn["105-0"])
    for row in rejecting:
        wanted = "reject" if row["instance_id"] in ("103-0", "105-1") else "accept"
        assert row["verdict"] == wanted
    assert {row["instance_id"] for row in rejecting} == set(IDS)


def test_a_run_without_evidence_has_none_to_write(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe.override("data.val_json=", "selection.mode=paste_all"), tmp_path / "run")

    assert main(["evidence", str(tmp_path / "run"), "--out", str(tmp_path / "x.parquet")]) == 1
    assert "keeps no evidence: it was run with selection.mode=paste_all" in capsys.readouterr().err
    assert main(["evidence", str(tmp_path), "--out", str(tmp_path / "x.parquet")]) == 1
    assert "is no output folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()
