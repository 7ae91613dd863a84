"""Several workers give what one process gives, also when some of them are killed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bsgal_generate import (
    DeviceWorkers,
    GenerationPlan,
    GenerationProgress,
    RayWorkers,
    SamplingConfig,
    generate,
    load_pipeline,
)
from bsgal_generate._drawn import Job, PipelineFacts
from bsgal_generate._worker import Failure
from bsgal_generate._workers import Event, Workers
from bsgal_generate.errors import OutOfMemoryError, WorkerError


@pytest.fixture(scope="module")
def script() -> Any:
    """The module `stub_script`, by a name under which worker processes find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield importlib.import_module("stub_script")


@pytest.fixture(scope="module")
def manifest(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest that one process writes."""
    out_dir = tmp_path_factory.mktemp("one")
    generate(script.PLAN, script.load(device="cpu"), out_dir, batch_size=script.BATCH_SIZE)
    return (out_dir / "manifest.jsonl").read_bytes()


def test_device_workers_write_the_manifest_of_one_process_though_some_are_killed(
    script: ModuleType, manifest: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill_one(progress: GenerationProgress) -> None:
        if progress.n_done > 40 * (len(killed) + 1) and len(killed) < 2:
            choose = max if killed else min
            pid = choose(process.pid or 0 for process in multiprocessing.active_children())
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    workers = DeviceWorkers(script.load, ["cpu", "cpu"])
    image_set = generate(script.PLAN, workers, tmp_path, batch_size=8, progress=kill_one)
    assert len(killed) == 2
    assert sum("was ended by signal 9" in text for text in caplog.messages) == 2
    assert (tmp_path / "manifest.jsonl").read_bytes() == manifest
    assert all(image_set.has_file(row) for row in image_set if row.status == "ok")
    assert image_set.meta["execution"]["n_workers"] == 2
    assert multiprocessing.active_children() == []


def test_ray_workers_write_the_manifest_of_one_process_though_one_is_killed(
    script: ModuleType,
    manifest: bytes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    # Ray gives its workers a low priority, which on a busy computer would make this test long.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    killed: list[int] = []

    def kill_one(progress: GenerationProgress) -> None:
        if progress.n_done > 60 and not killed:
            actor = workers._actors[1]
            killed.append(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))
            os.kill(killed[0], signal.SIGKILL)

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="WARNING",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    try:
        workers = RayWorkers(script.load, 2, gpus_per_worker=0)
        image_set = generate(script.PLAN, workers, tmp_path, batch_size=8, progress=kill_one)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert killed
    assert any("is gone (" in text for text in caplog.messages)
    assert (tmp_path / "manifest.jsonl").read_bytes() == manifest
    assert all(image_set.has_file(row) for row in image_set if row.status == "ok")


def test_real_pipeline_draws_the_same_in_a_worker(
    stable_diffusion_folder: Path, make_plan: Callable[..., GenerationPlan], tmp_path: Path
) -> None:
    load = partial(load_pipeline, stable_diffusion_folder)
    config = SamplingConfig(num_inference_steps=2)
    for name, pipeline in (
        ("one", load(device="cpu")),
        ("worker", DeviceWorkers(load, ["cpu"])),
    ):
        generate(make_plan(), pipeline, tmp_path / name, config=config, batch_size=4)
    one, worker = ((tmp_path / n / "manifest.jsonl").read_bytes() for n in ("one", "worker"))
    assert one == worker


def test_loader_that_cannot_be_sent_is_refused(make_stub: Any) -> None:
    with pytest.raises(ValueError, match="`load` must be a function at the top of a module"):
        DeviceWorkers(lambda *, device: make_stub()[0], ["cpu"])
    with pytest.raises(ValueError, match="`devices` must be a list of devices, got 'cpu'"):
        DeviceWorkers(load_pipeline, "cpu")
    with pytest.raises(ValueError, match="at least one worker"):
        DeviceWorkers(load_pipeline, [])


def test_missing_ray_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, make_plan: Callable[..., GenerationPlan], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    workers = RayWorkers(load_pipeline, 2)
    with pytest.raises(ImportError, match=r"pip install 'bsgal-generate\[ray\]'"):
        generate(make_plan(), workers, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def facts(**changes: Any) -> PipelineFacts:
    values: dict[str, Any] = {
        "sampling": {"num_inference_steps": 1, "guidance_scale": 1.0},
        "pipeline": {"class": "Stub", "dtype": "float32", "scheduler": {"class": "Stub"}},
        "model": {"id": "stub", "revision": None, "weight_hash": "sha256:0"},
        "versions": {"torch": "2"},
        "device": "cpu",
        "execution": {},
    }
    return PipelineFacts(**values | changes)


class ScriptedWorkers(Workers):
    """Two workers in this process that answer as a function of (worker, batch) says."""

    def __init__(self, answer: Callable[[int, Any], Any], ready: Callable[[int], Any]) -> None:
        super().__init__(load_pipeline, ["0", "1"])
        self._answer, self._ready = answer, ready
        self.events: list[Event] = []
        self.closed = False

    def _prepare(self, job: Job) -> None:
        pass

    def _start(self, worker: int) -> None:
        self.events.append(self._event(worker, self._ready(worker)))

    def _send(self, worker: int, batch: Any) -> None:
        self.events.append(self._event(worker, self._answer(worker, batch)))

    def _event(self, worker: int, reply: Any) -> Event:
        return Event(worker, reply, "was killed" if reply is None else "")

    def _wait(self) -> Event:
        event = self.events.pop(0)
        if event.reply is None:
            self.events = [other for other in self.events if other.worker != event.worker]
        return event

    def close(self) -> None:
        self.closed = True


JOB = Job(SamplingConfig(), 1, None)
SAMPLE = SimpleNamespace(sample_id="1-single-00000")


def test_batch_that_ends_three_workers_is_an_error() -> None:
    workers = ScriptedWorkers(
        lambda worker, batch: None if batch[0] is SAMPLE else [batch], lambda worker: facts()
    )
    workers.open(JOB)
    other: Any = SimpleNamespace(sample_id="other")
    batches: list[Any] = [[other], [other], [SAMPLE], [other]]
    with pytest.raises(
        WorkerError, match=r"3 workers ended .* sample 1-single-00000; .*was killed"
    ):
        list(workers.draw(batches))


@pytest.mark.parametrize(
    ("ready", "message"),
    [
        (lambda worker: None, "the worker 0 ended 3 times while it loaded .* it was killed"),
        (
            lambda worker: facts(versions={"torch": str(worker)}),
            'worker 1 differs from the first one: versions.torch was "0" and is now "1"',
        ),
    ],
)
def test_workers_that_do_not_start_alike_are_an_error(
    ready: Callable[[int], Any],
    message: str,
    make_plan: Callable[..., GenerationPlan],
    tmp_path: Path,
) -> None:
    workers = ScriptedWorkers(lambda worker, batch: [], ready)
    with pytest.raises(WorkerError, match=message):
        generate(make_plan(), workers, tmp_path / "set")
    assert workers.closed


def test_worker_that_never_gets_ready_does_not_hold_up_the_others() -> None:
    class OneAlone(ScriptedWorkers):
        def _start(self, worker: int) -> None:
            if worker == 1:
                super()._start(worker)

    workers = OneAlone(lambda worker, batch: [worker], lambda worker: facts())
    workers.open(JOB)
    batches: list[Any] = [[SAMPLE]] * 5
    assert list(workers.draw(batches)) == [[1]] * 5


def test_error_in_a_worker_is_raised_as_it_is_with_its_traceback_as_the_cause() -> None:
    def failing(worker: int, batch: Any) -> Failure:
        try:
            raise OutOfMemoryError("too big")
        except OutOfMemoryError as error:
            return Failure.of(error)

    workers = ScriptedWorkers(failing, lambda worker: facts())
    workers.open(JOB)
    with pytest.raises(OutOfMemoryError, match="too big") as caught:
        list(workers.draw([[SAMPLE]]))
    assert "in failing" in str(caught.value.__cause__)


def test_error_that_cannot_be_pickled_keeps_its_text() -> None:
    class LocalError(ValueError):
        pass

    with pytest.raises(WorkerError, match=r"the worker on 1 failed:\n(.*\n)*.*LocalError: odd"):
        Failure.of(LocalError("odd")).throw("1")


def test_batches_come_back_in_order_and_workers_do_not_run_far_ahead() -> None:
    taken: list[int] = []

    def batches() -> Any:
        for i in range(100):
            taken.append(i)
            yield [i]

    class Slow(ScriptedWorkers):
        def _wait(self) -> Event:
            # Worker 1 answers whenever it can, so worker 0 holds the first batch to the last.
            self.events.sort(key=lambda event: -event.worker)
            return super()._wait()

    workers = Slow(lambda worker, batch: [batch[0]], lambda worker: facts())
    workers.open(JOB)
    drawn = workers.draw(batches())
    assert next(drawn) == [0]
    assert len(taken) <= 10
    assert [piece[0] for piece in drawn] == list(range(1, 100))
