"""The launcher with small stand-ins for a training process, and once with the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsgal_train.errors import ProcessDiedError
from bsgal_train.processes import launch
from bsgal_train.processes.launch import Placement, run_processes
from bsgal_train.recipe import Recipe

TWO = Placement(processes=2)


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(launch, "_COMMAND", (sys.executable, "-S", "-c", program))


def test_every_process_knows_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(
        monkeypatch,
        "import json, os, sys\n"
        "names = 'WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS'.split()\n"
        "where = {n: os.environ[n] for n in names} | {'arguments': sys.argv[1:]}\n"
        "open(sys.argv[1] + os.environ['RANK'] + '-' + os.environ['LOCAL_RANK'], 'w')"
        ".write(json.dumps(where))\n",
    )
    placement = Placement(processes=2, machines=3, machine_rank=1, address="example.org:29500")

    assert run_processes([f"{tmp_path}/", "--more"], placement, n_threads=3) == 0

    found = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert sorted(found) == ["2-0", "3-1"]
    assert found["2-0"] == {
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "example.org",
        "MASTER_PORT": "29500",
        "OMP_NUM_THREADS": "3",
        "arguments": [f"{tmp_path}/", "--more"],
    }


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (
            "os.kill(os.getpid(), 9)",
            "process 1 of 2 was killed by SIGKILL, perhaps for want of mem",
        ),
        ("sys.exit(1)", r"process 1 of 2 failed \(exit code 1, see its message\)"),
    ],
)
def test_a_process_that_dies_ends_the_run(
    ending: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The first process would wait for the other one for ever.
    stand_in(
        monkeypatch,
        "import os, sys, time\n"
        "open(sys.argv[1] + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "while len(os.listdir(sys.argv[1])) < 2: time.sleep(0.01)\n"
        f"{ending} if os.environ['RANK'] == '1' else time.sleep(1000)\n",
    )

    with pytest.raises(ProcessDiedError, match=message):
        run_processes([f"{tmp_path}/"], TWO, 0)

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0").read_text()), 0)


def test_a_process_that_does_not_listen_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "_GRACE_S", 0.2)
    stand_in(
        monkeypatch,
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1] + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "while len(os.listdir(sys.argv[1])) < 2: time.sleep(0.01)\n"
        "sys.exit(3) if os.environ['RANK'] == '0' else time.sleep(1000)\n",
    )

    with pytest.raises(ProcessDiedError, match="process 0 of 2 failed"):
        run_processes([f"{tmp_path}/"], TWO, 0)

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "1").read_text()), 0)


def test_ctrl_c_is_left_to_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    stand_in(
        monkeypatch,
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
        "if os.environ['RANK'] == '0':\n"
        "    time.sleep(0.2); os.kill(os.getppid(), signal.SIGINT)\n"
        "    time.sleep(0.2)\n"
        "    sys.exit(130)\n"
        "time.sleep(0.3); sys.exit(130)\n",
    )

    assert run_processes([], TWO, 0) == 130
    assert signal.getsignal(signal.SIGINT) is handler


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    # The program in between is killed, so only the watch inside the process can end it.
    child = (
        "import os, sys, time\n"
        "from bsgal_train.processes import launch\n"
        "launch._end_with_launcher()\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(1000)\n"
    )
    between = (
        "from bsgal_train.processes import launch\n"
        f"launch._COMMAND = ({sys.executable!r}, '-c', {child!r})\n"
        "launch.run_processes([], launch.Placement(processes=2), 0)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", between])
    pid = tmp_path / "pid"
    until_s = time.monotonic() + 60
    while not (pid.is_file() and pid.read_text()):
        assert time.monotonic() < until_s
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()

    while Path(f"/proc/{pid.read_text()}").exists():
        assert time.monotonic() < until_s, "the process outlived its launcher"
        time.sleep(0.1)


_LEAVING = """
import atexit, os, time

# What a backend does at its end, and at that of the process, may wait for the other processes.
atexit.register(time.sleep, 1000)

import torch.distributed as dist

from bsgal_train.processes import group as processes
from bsgal_train.processes.launch import joined

dist.destroy_process_group = lambda: time.sleep(1000)
with joined():
    processes.wait_for_all()
    if os.environ["RANK"] == "1":
        raise RuntimeError("the disk is gone")
    # As in an exchange that does not notice.
    time.sleep(1000)
"""


@pytest.mark.parametrize("starter", ["bsgal-train", "torchrun"])
def test_a_process_that_fails_waits_for_nobody(starter: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_LEAVING)
    launcher = (
        "from bsgal_train.processes import launch\n"
        f"launch._COMMAND = ({sys.executable!r}, {str(program)!r})\n"
        "launch.run_processes([], launch.Placement(processes=2), 0)\n"
    )
    arguments = {
        "bsgal-train": ["-c", launcher],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program],
    }

    with subprocess.Popen(
        [sys.executable, *arguments[starter]], stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            _, errors = run.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            run.terminate()
            raise

    assert run.returncode == 1
    assert "RuntimeError: the disk is gone" in errors
    if starter == "bsgal-train":
        assert "process 1 of 2 failed (exit code 1, see its message)" in errors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"processes": 0}, "--processes and --machines must be at least 1"),
        ({"machines": 2}, "need --address"),
        ({"machine_rank": 1}, r"--machine-rank must be 0 \.\. 0"),
        ({"address": "nowhere"}, "must be HOST:PORT, got `nowhere`"),
    ],
)
def test_an_impossible_placement_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement(**values)  # type: ignore[arg-type]


def test_the_command_line_trains_in_two_processes(tiny_recipe: Recipe, tmp_path: Path) -> None:
    tiny_recipe.override("schedule.n_steps=2").save(tmp_path / "tiny.json")
    arguments = ["train", "--recipe", str(tmp_path / "tiny.json"), "--out", str(tmp_path / "run")]

    done = subprocess.run(
        [sys.executable, "-m", "bsgal_train", *arguments, "--processes", "2"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("APr") == 1
    assert done.stdout.count("results in") == 1
    assert done.stderr.count("training: 2/2") == 1
    assert json.loads((tmp_path / "run/results.json").read_text())["n_steps"] == 2
