"""Start the processes of one run, watch them, and end all when one dies.

Every process is the same command with torchrun's environment variables (`RANK`, `LOCAL_RANK`,
`WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`), so a run can as well be started by torchrun itself:
`torchrun --nproc-per-node 2 -m bsgal_train train ...`.

torch's launcher itself is not used here: it ends all processes as soon as one leaves with a code
other than 0, so that the first one to be done after Ctrl-C would cut off what the others still say
and write, and it tells of a process that died in a page instead of a line.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from bsgal_train.errors import ProcessDiedError

__all__ = ["Placement", "is_part_of_a_run", "joined", "run_processes"]

_COMMAND = (sys.executable, "-m", "bsgal_train")
_GRACE_S = 10.0
_POLL_S = 0.1
_LAUNCHER = "BSGAL_TRAIN_LAUNCHER"
# Longer than the others wait for the first process to evaluate and to write.
_TIMEOUT_MIN = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where the processes of a run are.

    Attributes:
        processes: On each machine.
        machines: That take part, all with as many processes.
        machine_rank: Number of this machine, from 0.
        address: `host:port` of machine 0; empty picks a free port, for one machine.
    """

    processes: int = 1
    machines: int = 1
    machine_rank: int = 0
    address: str = ""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range, or several machines lack an address.
        """
        if self.processes < 1 or self.machines < 1:
            raise ValueError(
                "--processes and --machines must be at least 1, got "
                f"{self.processes} and {self.machines}"
            )
        if not 0 <= self.machine_rank < self.machines:
            raise ValueError(
                f"--machine-rank must be 0 .. {self.machines - 1}, got {self.machine_rank}"
            )
        if self.machines > 1 and not self.address:
            raise ValueError("several machines need --address HOST:PORT of machine 0, on all")
        host, colon, port = self.address.rpartition(":")
        if self.address and not (host and colon and port.isdigit()):
            raise ValueError(f"--address must be HOST:PORT, got `{self.address}`")

    @property
    def total(self) -> int:
        """Give the number of processes on all machines."""
        return self.processes * self.machines


def is_part_of_a_run() -> bool:
    """Say whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_processes(arguments: Sequence[str], placement: Placement, n_threads: int) -> int:
    """Run `bsgal-train` with `arguments` in this machine's processes, and wait for them.

    Ctrl-C reaches the processes themselves; they finish their step and save.

    Args:
        arguments: Of the command line.
        placement: Where they are.
        n_threads: Threads of each; 0 shares the processors among them.

    Returns:
        The exit code of the first process: 0, or 130 after Ctrl-C.

    Raises:
        ProcessDiedError: One of them failed; the others are ended.
    """
    host, _, port = (placement.address or f"127.0.0.1:{_free_port()}").rpartition(":")
    common = {
        "WORLD_SIZE": str(placement.total),
        "LOCAL_WORLD_SIZE": str(placement.processes),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        _LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": str(n_threads or max(1, (os.cpu_count() or 1) // placement.processes)),
    }
    first_rank = placement.machine_rank * placement.processes
    with _interrupt_left_to_children():
        children = [
            subprocess.Popen(
                [*_COMMAND, *arguments],
                env={**os.environ, **common, "RANK": str(first_rank + i), "LOCAL_RANK": str(i)},
            )
            for i in range(placement.processes)
        ]
        try:
            return _wait(children, first_rank, placement.total)
        finally:
            _end(children)


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes of this run, if it has several, for the length of the block.

    On an error the group stays as it is, and the process ends without it once the error has been
    told: ending a group waits for the other processes, which may be waiting for this one. Whoever
    started the processes sees one that failed, and ends the others.
    """
    if not is_part_of_a_run():
        yield
        return
    _end_with_launcher()
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=_TIMEOUT_MIN))
    with ExitStack() as stack:
        stack.push(_leave)
        yield


def _leave(
    kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Leave the group with all others at the end of a run, alone on an error."""
    import torch.distributed as dist

    if kind is None:
        dist.destroy_process_group()
    else:
        # After the error's message, and before what torch does at the end of a process.
        atexit.register(_end_at_once, 130 if issubclass(kind, KeyboardInterrupt) else 1)


def _end_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_launcher() -> None:
    """End this process soon after the one that started it is gone, even if that was killed."""
    launcher = int(os.environ.get(_LAUNCHER, "0"))
    if not launcher:
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _wait(children: Sequence[subprocess.Popen[bytes]], first_rank: int, total: int) -> int:
    """Return when all have ended; raise as soon as one has failed."""
    running = dict(enumerate(children))
    while running:
        for index, child in list(running.items()):
            code = child.poll()
            if code is None:
                continue
            del running[index]
            if code not in (0, 130):
                raise ProcessDiedError(
                    f"process {first_rank + index} of {total} {_ending(code)}; the run is stopped. "
                    "The same command goes on from the newest checkpoint"
                )
        time.sleep(_POLL_S)
    return children[0].returncode


def _ending(code: int) -> str:
    if code >= 0:
        return f"failed (exit code {code}, see its message)"
    name = signal.Signals(-code).name
    hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: asking first."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    until_s = time.monotonic() + _GRACE_S
    for child in children:
        try:
            child.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def _interrupt_left_to_children() -> Iterator[None]:
    """Ignore Ctrl-C here, but not in the processes started inside the block."""

    def pass_over(signal_number: int, frame: object) -> None:
        """Do nothing: a handler, unlike SIG_IGN, is not inherited by a program."""

    previous = signal.signal(signal.SIGINT, pass_over)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
