from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from bsgal_mask import PoolError, build_pool

HOLD = """
import sys, time
from pathlib import Path
from bsgal_mask._pool_writer import PoolWriter
with PoolWriter(Path(sys.argv[1]), config={}, source={}, versions={}):
    print("open", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "pool")], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"open\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_in_one_line(make_image_set, holder, tmp_path):
    images = make_image_set({"a": "blank"})
    command = [sys.executable, "-m", "bsgal_mask.cli", "run", str(images), "--quiet"]
    second = subprocess.run(
        [*command, "--out", str(tmp_path / "pool")], capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert "another run is writing to the pool" in second.stderr
    assert second.stderr.count("\n") == 1
    assert holder.poll() is None


def test_a_killed_writer_leaves_the_pool_to_the_next(make_image_set, make_stub, holder, tmp_path):
    pool = tmp_path / "pool"
    images = make_image_set({"a": "blank"})
    with pytest.raises(PoolError, match="another run is writing"):
        build_pool(images, pool, methods=[make_stub()])
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    (pool / "meta.json").unlink()
    (pool / "manifest.jsonl").unlink()
    assert build_pool(images, pool, methods=[make_stub()]).n_dropped == 1
    # The first is closed; the same process may open the pool again.
    assert build_pool(images, pool, methods=[make_stub()]).n_dropped == 1


def test_a_writer_that_was_refused_lets_go_of_the_pool(make_image_set, make_stub, tmp_path):
    images = make_image_set({"a": "blank"})
    build_pool(images, tmp_path / "pool", methods=[make_stub()])
    with pytest.raises(PoolError, match="other settings") as refused:
        build_pool(images, tmp_path / "pool", methods=[make_stub(grow_px=1)])
    # The traceback keeps the refused writer alive.
    assert refused.value is not None
    build_pool(images, tmp_path / "pool", methods=[make_stub()])


def test_of_runs_that_start_together_one_writes(make_image_set, drawn, tmp_path):
    images = make_image_set({f"s{i}": drawn("disc", side_px=40 + i)[0] for i in range(12)})
    command = [sys.executable, "-m", "bsgal_mask.cli", "run", str(images), "--quiet"]
    for attempt in range(3):
        pool = tmp_path / f"pool{attempt}"
        running = [
            subprocess.Popen(
                [*command, "--out", str(pool)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            for _ in range(4)
        ]
        ends = [(process.communicate()[1].decode(), process.returncode) for process in running]
        assert all(
            text == "" if code == 0 else "another run is writing" in text and code == 1
            for text, code in ends
        )
        assert any(code == 0 for _, code in ends)
        rows = [json.loads(line) for line in (pool / "manifest.jsonl").read_text().splitlines()]
        assert sorted(row["instance_id"] for row in rows) == sorted(f"s{i}" for i in range(12))


def test_readers_read_while_a_run_writes(holder, tmp_path):
    command = [sys.executable, "-m", "bsgal_mask.cli"]
    for name in ("summary", "verify"):
        subprocess.run(
            [*command, name, str(tmp_path / "pool")], check=True, capture_output=True, timeout=60
        )
    assert holder.poll() is None
