"""A run that is really killed, with SIGKILL and in the middle of its work."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from bsgal_generate import ImageSet

RUN = """
import runpy, sys, time
from bsgal_generate import Category, GenerationPlan, ImagePipeline, generate

def fault(prompt, seed):
    time.sleep(0.002)
    return "blank" if seed % 4 == 0 else None

stub = runpy.run_path(sys.argv[1])["StubPipeline"](fault=fault)
categories = tuple(Category(i, f"thing_{i}") for i in range(1, 21))
plan = GenerationPlan(categories=categories, images_per_category=10)
generate(plan, ImagePipeline(stub, "stub"), sys.argv[2], batch_size=8)
"""


def start(out_dir: Path) -> subprocess.Popen[bytes]:
    conftest = Path(__file__).with_name("conftest.py")
    return subprocess.Popen([sys.executable, "-c", RUN, str(conftest), str(out_dir)])


def n_lines(out_dir: Path) -> int:
    manifest = out_dir / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


@pytest.mark.slow
def test_run_killed_at_random_points_ends_with_the_rows_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unbroken = start(whole)
    chance = random.Random(0)
    for least in (10, 70, 150):
        process = start(killed)
        try:
            while process.poll() is None and n_lines(killed) < least:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.05))
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 150 <= n_lines(killed) < 250
    assert start(killed).wait() == 0
    assert unbroken.wait() == 0
    expected, resumed = ImageSet.open(whole), ImageSet.open(killed)
    assert len(resumed) == 200
    assert [asdict(row) for row in resumed.attempts] == [asdict(row) for row in expected.attempts]
    assert all(resumed.has_file(row) for row in resumed if row.status == "ok")
    assert len(list(killed.rglob("*.png"))) == sum(row.status == "ok" for row in resumed)
