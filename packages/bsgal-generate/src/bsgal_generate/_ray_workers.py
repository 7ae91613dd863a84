"""Workers on the machines of a Ray cluster."""

from __future__ import annotations

import logging
from collections import deque
from types import ModuleType
from typing import Any

from ._drawn import Job
from ._worker import Batch, PipelineLoader, Worker
from ._workers import Event, Workers

logger = logging.getLogger(__name__)

_PATIENCE_S = 60.0


class RayWorkers(Workers):
    """Workers on a Ray cluster, for `generate`.

    Images come back to the process that called `generate`, so the machines need no common folder,
    but each needs this package, and the model if it is given as a folder. If the process is already
    connected to a cluster, that one is used, else a connection is made and closed again.

    Args:
        load: Loads the pipeline in a worker: `partial(load_pipeline, "FOLDER", dtype="float16")`,
            or a function that takes `device` by name.
        n_workers: How many workers.
        gpus_per_worker: GPUs each worker takes; a share such as 0.5 puts two on one GPU, and 0 runs
            them on CPUs.
        cpus_per_worker: CPU cores that Ray reserves for each worker.
        address: The cluster's address; None takes the environment's `RAY_ADDRESS`, or else starts
            a cluster on this computer alone.

    Raises:
        ValueError: There is no worker.
    """

    def __init__(
        self,
        load: PipelineLoader,
        n_workers: int,
        *,
        gpus_per_worker: float = 1.0,
        cpus_per_worker: float = 1.0,
        address: str | None = None,
    ) -> None:
        super().__init__(load, [f"{i} of the Ray cluster" for i in range(n_workers)])
        self._device = "cuda" if gpus_per_worker else "cpu"
        self._resources = {"num_gpus": gpus_per_worker, "num_cpus": cpus_per_worker}
        self._address = address
        self._job: Job | None = None
        self._connected_here = False
        self._actors: dict[int, Any] = {}
        self._answers: dict[int, deque[Any]] = {}

    def _prepare(self, job: Job) -> None:
        ray = _import_ray()
        self._job = job
        if not ray.is_initialized():
            ray.init(address=self._address, include_dashboard=False, logging_level=logging.WARNING)
            self._connected_here = True

    def _start(self, worker: int) -> None:
        ray = _import_ray()
        # Ray would restart it without telling us, and without its pipeline.
        actor_class = ray.remote(**self._resources, max_restarts=0)(Worker)
        actor = actor_class.remote(self._load, self._device, self._job)
        self._actors[worker] = actor
        self._answers[worker] = deque([actor.ready.remote()])

    def _send(self, worker: int, batch: Batch) -> None:
        self._answers[worker].append(self._actors[worker].draw.remote(batch))

    def _wait(self) -> Event:
        ray = _import_ray()
        # Only the oldest answer of each worker, so that they come in order.
        workers = {answers[0]: worker for worker, answers in self._answers.items() if answers}
        ready: list[Any] = []
        while not ready:
            ready, _ = ray.wait(list(workers), timeout=_PATIENCE_S)
            if not ready and not all(self._is_ready):
                free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
                logger.warning(
                    "%d of %d workers are ready; each needs %s, and the cluster has %s free",
                    sum(self._is_ready),
                    len(self),
                    self._resources,
                    free,
                )
        worker = workers[ready[0]]
        gone = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
        try:
            reply = ray.get(ready[0])
        except gone as error:
            self._actors.pop(worker)
            self._answers.pop(worker)
            return Event(worker, None, f"is gone ({' '.join(str(error).split())})")
        self._answers[worker].popleft()
        return Event(worker, reply)

    def close(self) -> None:
        """End all workers, and the connection if it was made here."""
        ray = _import_ray()
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._answers.clear()
        if self._connected_here:
            ray.shutdown()
            self._connected_here = False


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "workers on a Ray cluster need Ray; get it with `pip install 'bsgal-generate[ray]'`"
        ) from error
    module: ModuleType = ray
    return module
