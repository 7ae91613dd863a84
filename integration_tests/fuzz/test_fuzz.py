"""Damaged files, from outside: every reader refuses them, or says exactly what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, and limits memory as Linux does"
)
RUN = Path(__file__).with_name("run.py")


def fuzz(*options: str) -> tuple[int, dict[str, int], str]:
    """Run the cases in a process of their own: it forks, which one with threads must not."""
    command = [sys.executable, str(RUN), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    return done.returncode, json.loads(lines[-1]), done.stdout


def test_no_damage_is_silent_internal_a_fault_or_a_hang() -> None:
    status, verdicts, report = fuzz("--cases", "2000")
    assert status == 0, report
    assert sum(verdicts.values()) == 2000
    # Mutations that readers never see, or all refuse at once, would find nothing.
    assert verdicts["refused"] > 1000
    assert verdicts["unchanged"] > 100
    assert verdicts["honest"] > 50


def test_readers_that_trust_their_files_are_caught() -> None:
    status, verdicts, report = fuzz("--cases", "800", "--trust")
    assert status == 1
    assert verdicts["silent"] > 0, report
    assert verdicts["internal"] > 0, report
    cases = [line for line in report.splitlines() if line.startswith("case ")]
    # It is two readers; the others stand.
    trusting = ("generate: image set", "paste: annotations", "paste: donors", "paste: compose")
    assert all(any(name in line for name in trusting) for line in cases)


def test_case_is_run_again_alone_by_its_number() -> None:
    status, verdicts, report = fuzz("--case", "1370")
    assert status == 0
    assert sum(verdicts.values()) == 1
    assert "case 1370: " in report


@pytest.mark.parametrize(
    ("work", "verdict"), [("fault", "fault"), ("memory", "internal"), ("hang", "hang")]
)
def test_end_of_a_process_is_told_for_what_it_is(work: str, verdict: str) -> None:
    status, verdicts, report = fuzz("--case", "0", "--broken", work)
    assert (status, verdicts[verdict]) == (1, 1), report
