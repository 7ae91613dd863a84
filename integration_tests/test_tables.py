"""The tables of READMEs and site come from the committed results and from nowhere else."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "tables.py"


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The script's function, with one benchmark `any` that has one table `times`."""
    names = runpy.run_path(str(SCRIPT))
    real = names["tables_of"]
    stub = {"times": "| a |\n|---|\n| 1 |"}
    function: Callable[[str], str] = names["filled"]
    monkeypatch.setitem(
        function.__globals__, "tables_of", lambda name: stub if name == "any" else real(name)
    )
    return function


def test_every_table_is_what_the_results_say() -> None:
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_table_is_seen_and_mended(filled: Callable[[str], str]) -> None:
    text = "x\n\n<!-- table: any/times -->\n| typed by hand |\n<!-- end table -->\n\ny\n"
    mended = filled(text)
    assert "typed by hand" not in mended
    assert "| 1 |" in mended
    assert filled(mended) == mended


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("no_such/times", "there is no benchmarks/bench_no_such.py"),
        ("any/other", "no table 'other'"),
    ],
)
def test_an_unknown_table_is_an_error(
    filled: Callable[[str], str], region: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        filled(f"<!-- table: {region} -->\n<!-- end table -->\n")
