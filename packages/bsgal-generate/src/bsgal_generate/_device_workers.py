"""Workers on the devices of this computer: one process each."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

from ._drawn import Job
from ._worker import Batch, PipelineLoader, Worker
from ._workers import Event, Workers


class DeviceWorkers(Workers):
    """One worker process per device of this computer, for `generate`.

    The processes are started afresh (not forked), so a script that uses them must keep its own work
    under `if __name__ == "__main__":`, and each of them imports the libraries anew.

    Args:
        load: Loads the pipeline in a worker: `partial(load_pipeline, "FOLDER", dtype="float16")`,
            or a function at the top of a module that takes `device` by name.
        devices: Where to run, such as `["cuda:0", "cuda:1"]`; one worker each, repeats allowed.

    Raises:
        ValueError: There is no device, or `load` cannot be sent to another process.
    """

    def __init__(self, load: PipelineLoader, devices: Sequence[str]) -> None:
        if isinstance(devices, str):
            raise ValueError(f"`devices` must be a list of devices, got {devices!r}")
        super().__init__(load, [f"{i} on {device}" for i, device in enumerate(devices)])
        self._devices = tuple(devices)
        try:
            pickle.dumps(load)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ValueError(
                "`load` must be a function at the top of a module, or a functools.partial of one, "
                f"got {load!r} ({error})"
            ) from None
        self._job: Job | None = None
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection] = {}

    def _prepare(self, job: Job) -> None:
        self._job = job

    def _start(self, worker: int) -> None:
        # CUDA cannot be used in a forked process.
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=_serve, args=(there, self._load, self._devices[worker], self._job), daemon=True
        )
        process.start()
        # Now the worker alone holds its end, so that its death is the end of this one.
        there.close()
        self._processes[worker], self._pipes[worker] = process, here

    def _send(self, worker: int, batch: Batch) -> None:
        # If it is gone, `_wait` finds that.
        with suppress(OSError):
            self._pipes[worker].send(batch)

    def _wait(self) -> Event:
        numbers = {pipe: worker for worker, pipe in self._pipes.items()}
        pipe = cast(Connection, wait(list(numbers))[0])
        worker = numbers[pipe]
        try:
            return Event(worker, pipe.recv())
        except (EOFError, OSError):
            return Event(worker, None, self._end(worker))

    def _end(self, worker: int) -> str:
        self._pipes.pop(worker).close()
        process = self._processes.pop(worker)
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()
        code = process.exitcode or 0
        process.close()
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        """End all workers: idle ones by the end of their pipe, busy ones at once."""
        for worker, process in self._processes.items():
            self._pipes[worker].close()
            if self._in_hand[worker] or not self._is_ready[worker]:
                process.terminate()
        for worker in list(self._processes):
            self._end(worker)


def _serve(pipe: Connection, load: PipelineLoader, device: str, job: Job) -> None:
    # Ctrl-C reaches the whole group; the main process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(load, device, job)
    try:
        pipe.send(worker.ready())
        while True:
            pipe.send(worker.draw(pipe.recv()))
    except (EOFError, OSError):
        # The main process is gone, so there is nobody to draw for.
        return
