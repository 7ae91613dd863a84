"""What the benchmarks note about the code that they measured."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

HARNESS = Path(__file__).resolve().parent.parent / "benchmarks" / "_harness.py"


def test_results_of_other_benchmarks_do_not_make_the_code_dirty(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "a.json").write_text("1")
    (tmp_path / "code.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    measured_commit = runpy.run_path(str(HARNESS))["measured_commit"]
    commit = measured_commit(tmp_path)
    assert len(commit) == 12

    (results / "a.json").write_text("2")
    (results / "b.json").write_text("2")
    git("add", ".")
    assert measured_commit(tmp_path) == commit

    (tmp_path / "code.py").write_text("2")
    assert measured_commit(tmp_path) == f"{commit}-dirty"
    git("add", ".")
    assert measured_commit(tmp_path) == f"{commit}-dirty"
