"""A screening as its user starts it: stopped, gone on with, by several processes, with mistakes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bsgal_score import EvidenceTable
from bsgal_train.cli import main
from bsgal_train.engine import screen as module
from bsgal_train.engine.run import train
from bsgal_train.engine.screen import screen
from bsgal_train.recipe import Recipe

# As many as make two rounds of images.
N_LOOKS = 8
IDS = ["103-0", "103-1", "105-0", "105-1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("screened") / "run"


@pytest.fixture
def recipe(tiny_recipe: Recipe, run: Path) -> Recipe:
    if not run.is_dir():
        train(tiny_recipe.override("schedule.n_steps=2"), run)
    return tiny_recipe.override(f"detector.init={run}")


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY_S", -1.0)


def same(one: EvidenceTable, other: EvidenceTable) -> bool:
    return (
        one.ids == other.ids
        and np.array_equal(one.looks, other.looks)
        and np.array_equal(one.p_values, other.p_values, equal_nan=True)
        and one.verdicts.tolist() == other.verdicts.tolist()
        and all(
            np.array_equal(one.evidence[name], other.evidence[name], equal_nan=True)
            for name in one.evidence
        )
    )


def test_a_screening_says_of_every_instance_what_it_saw(recipe: Recipe, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    table = screen(
        recipe,
        tmp_path / "table.parquet",
        n_looks=N_LOOKS,
        progress=lambda done, total, text: told.append((done, total)),
    )

    assert table.ids == IDS
    assert (table.looks <= N_LOOKS).all()
    assert told[-1][0] == told[-1][1] > 0
    assert same(EvidenceTable.from_parquet(tmp_path / "table.parquet"), table)
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


@pytest.mark.usefixtures("no_wait")
def test_a_stopped_screening_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    whole = screen(recipe, tmp_path / "whole.parquet", n_looks=N_LOOKS)

    def stop(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "table.parquet"
    with pytest.raises(KeyboardInterrupt, match=r"the same command goes on from .*\.partial"):
        screen(recipe, out, n_looks=N_LOOKS, progress=stop)
    assert not out.exists()
    rounds: list[int] = []
    table = screen(
        recipe, out, n_looks=N_LOOKS, progress=lambda done, total, text: rounds.append(done)
    )

    assert same(table, whole)
    # One round was left.
    assert len(rounds) == 1
    assert not out.with_name("table.parquet.partial").exists()


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize(
    ("changes", "n_looks", "differing"),
    [
        (["paste.max_instances=4"], N_LOOKS, "paste.max_instances"),
        (["schedule.seed=5"], N_LOOKS, "schedule.seed"),
        ([], N_LOOKS + 1, "number of looks"),
    ],
)
def test_the_beginning_of_another_screening_is_refused(
    recipe: Recipe, tmp_path: Path, changes: list[str], n_looks: int, differing: str
) -> None:
    def stop(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "table.parquet"
    with pytest.raises(KeyboardInterrupt):
        screen(recipe, out, n_looks=N_LOOKS, progress=stop)

    with pytest.raises(ValueError, match=f"what differs: {differing}; delete it"):
        screen(recipe.override(*changes), out, n_looks=n_looks)


def test_a_beginning_that_cannot_be_read_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "table.parquet.partial").write_bytes(b"torn")

    with pytest.raises(ValueError, match=r"table\.parquet\.partial.* cannot be read.*delete it"):
        screen(recipe, tmp_path / "table.parquet", n_looks=N_LOOKS)


def test_the_table_is_the_same_with_several_processes_and_loaders(
    recipe: Recipe,
    in_processes: Callable[[int, Callable[[int], object]], list[int]],
    tmp_path: Path,
) -> None:
    whole = screen(recipe, tmp_path / "whole.parquet", n_looks=N_LOOKS)
    out = tmp_path / "table.parquet"

    def work(rank: int) -> None:
        found = screen(recipe.override(f"data.n_workers={rank}"), out, n_looks=N_LOOKS)
        assert same(found, whole)

    assert in_processes(3, work) == [0, 0, 0]
    assert same(EvidenceTable.from_parquet(out), whole)


@pytest.mark.parametrize(
    ("changes", "n_looks", "message"),
    [
        (["selection.mode=none", "paste.pool="], 1, "there is no pool to look at"),
        (["detector.init=random"], 1, "a detector from random weights sees nothing"),
        ([], 0, "at least 1 look at each instance, got 0"),
        (["paste.pool=nowhere"], 1, "nowhere"),
    ],
)
def test_what_cannot_be_screened_is_refused(
    recipe: Recipe, tmp_path: Path, changes: list[str], n_looks: int, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        screen(recipe.override(*changes), tmp_path / "table.parquet", n_looks=n_looks)


def test_a_share_outside_of_0_and_1_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 1.0"):
        screen(recipe, tmp_path / "table.parquet", n_looks=1, alpha=1.0)


def test_no_file_is_overwritten_and_no_folder_made(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(b"of somebody")

    with pytest.raises(ValueError, match=r"table\.parquet is there already"):
        screen(recipe, tmp_path / "table.parquet", n_looks=1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        screen(recipe, tmp_path / "nowhere" / "table.parquet", n_looks=1)


def test_the_command_screens_with_a_run_or_a_recipe(
    recipe: Recipe, run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.save(tmp_path / "recipe.json")
    pool = ["--pool", str(tiny_data / "pool"), "--looks", "2"]
    outs = [tmp_path / "by_run.parquet", tmp_path / "by_recipe.parquet"]
    for source, out in zip((run, tmp_path / "recipe.json"), outs, strict=True):
        assert main(["screen", str(source), *pool, "--out", str(out)]) == 0

    printed = capsys.readouterr()
    assert f"table in {outs[0]}" in printed.out
    assert "uncertain" in printed.out
    assert "looking: " in printed.err
    assert same(*map(EvidenceTable.from_parquet, outs))


@pytest.mark.slow
def test_the_command_shares_the_work(
    recipe: Recipe, run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for out, processes in zip(outs, (1, 2), strict=True):
        arguments = ["--pool", str(tiny_data / "pool"), "--looks", "2", "--out", str(out)]
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        assert main(["screen", str(run), *arguments, "--processes", str(processes)]) == 0

    assert same(*map(EvidenceTable.from_parquet, outs))
