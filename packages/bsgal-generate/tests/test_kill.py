"""Runs that are really killed, with SIGKILL and in the middle of their work."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsgal_generate import ImageSet


def start(out_dir: Path, n_workers: int = 1) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("stub_script.py")
    return subprocess.Popen([sys.executable, str(script), str(out_dir), str(n_workers)])


def n_lines(out_dir: Path) -> int:
    manifest = out_dir / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("unbroken")
    assert start(out_dir).wait() == 0
    return out_dir


@pytest.mark.slow
@pytest.mark.parametrize(("n_workers", "killed_after"), [(1, (10, 70, 150)), (2, (40, 160))])
def test_run_killed_at_random_points_ends_with_the_rows_of_an_unbroken_one(
    n_workers: int, killed_after: tuple[int, ...], unbroken: Path, tmp_path: Path
) -> None:
    later_s = random.Random(n_workers)
    for least in killed_after:
        process = start(tmp_path, n_workers)
        try:
            while process.poll() is None and n_lines(tmp_path) < least:
                time.sleep(0.001)
            time.sleep(later_s.uniform(0, 0.05))
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    assert killed_after[-1] <= n_lines(tmp_path) < 250
    # The last run need not be of the kind that was killed.
    assert start(tmp_path).wait() == 0
    manifest = (tmp_path / "manifest.jsonl").read_bytes()
    assert manifest == (unbroken / "manifest.jsonl").read_bytes()
    image_set = ImageSet.open(tmp_path)
    assert len(image_set) == 200
    assert all(image_set.has_file(row) for row in image_set if row.status == "ok")
    assert len(list(tmp_path.rglob("*.png"))) == sum(row.status == "ok" for row in image_set)
