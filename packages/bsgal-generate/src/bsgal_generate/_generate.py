"""Turns a plan into an image set, and goes on where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

from ._drawn import BatchArtist, Drawn, Job, PipelineFacts
from ._image_set import ImageSet, ImageSetWriter, Status
from ._pipelines import ImagePipeline
from ._plan import GenerationPlan, Sample
from ._rounds import continue_rounds
from ._workers import Workers
from .config import SamplingConfig
from .errors import NonfiniteImagesError
from .progress import ProgressCallback, ProgressMeter


def generate(
    plan: GenerationPlan,
    pipeline: ImagePipeline | Workers,
    out_dir: str | Path,
    *,
    config: SamplingConfig | None = None,
    batch_size: int = 8,
    progress: ProgressCallback | None = None,
) -> ImageSet:
    """Draw every sample of a plan into an image set.

    Batches are cut from the plan by position, and redraws follow in batches of their own, so a run
    that was killed draws the same batches again when it is continued: its images are the same to
    the last bit on the same machine. Where the batch size differs, pixels may differ by rounding.
    A set may be continued with more images per category, which are then drawn after the others.

    Args:
        plan: What to draw.
        pipeline: What draws it, from `load_pipeline`; or `DeviceWorkers` or `RayWorkers`, which
            load one such pipeline each. The rows are the same, in the same order.
        out_dir: The image set's folder; a set made from the same plan, pipeline and config is
            continued.
        config: Sampling settings; None takes the defaults.
        batch_size: Images in one call of the pipeline; halved whenever memory runs out.
        progress: Called with a `GenerationProgress` at the start and after every call.

    Returns:
        The image set, complete.

    Raises:
        ConfigChangedError: The folder holds a set made otherwise; the message names the difference.
        ImageSetError: The folder cannot be written or its manifest is damaged.
        ValueError: The pipeline does not take one of the settings; nothing has been written then.
        OutOfMemoryError: A single image does not fit into memory.
        NonfiniteImagesError: The first images, a batch and at least two, are all NaN or infinite.
        WorkerError: Workers ended again and again, or hold different pipelines.
    """
    job = Job(config or SamplingConfig(), batch_size, plan.negative_prompt)
    n_workers = len(pipeline) if isinstance(pipeline, Workers) else 1
    with (
        _opened(pipeline, job) as (facts, draw),
        ImageSetWriter(out_dir, _meta(plan, facts, job, n_workers)) as writer,
    ):
        recorder = _Recorder(writer, ImageSet.open(out_dir), len(plan), job.config, progress)
        for samples in _rounds(plan, writer):
            for attempt in range(job.config.max_redraws + 1):
                batches = _batches(recorder.due(samples(), attempt), batch_size)
                for drawn in draw(batch for batch in batches if not recorder.has_all(batch)):
                    recorder.record(drawn)
    return ImageSet.open(out_dir)


def _rounds(
    plan: GenerationPlan, writer: ImageSetWriter
) -> Iterator[Callable[[], Iterator[Sample]]]:
    """Yield, for every round in which the set was planned, what lists its samples.

    Batches do not cross from one round into the next, so that a continued set is cut into the
    batches it was drawn in.
    """
    rounds = continue_rounds(writer.root, writer.meta, plan.counts())
    for before, after in pairwise([0, *rounds]):
        yield partial(replace(plan, images_per_category=after).beyond, before)


_Draw = Callable[[Iterable[Sequence[Sample]]], Iterator[list[Drawn]]]


@contextmanager
def _opened(pipeline: ImagePipeline | Workers, job: Job) -> Iterator[tuple[PipelineFacts, _Draw]]:
    """Yield what is to be recorded of a pipeline or workers, and the function that draws."""
    if isinstance(pipeline, Workers):
        try:
            yield pipeline.open(job), pipeline.draw
        finally:
            pipeline.close()
    else:
        artist = BatchArtist(pipeline, job)
        yield artist.facts(), lambda batches: (p for batch in batches for p in artist.draw(batch))


class _Recorder:
    """Knows what the manifest holds, by sample and attempt, and adds to it.

    A row whose file is missing or damaged counts as not there.
    """

    def __init__(
        self,
        writer: ImageSetWriter,
        image_set: ImageSet,
        n_total: int,
        config: SamplingConfig,
        progress: ProgressCallback | None,
    ) -> None:
        self._writer = writer
        self._config = config
        self._meter = ProgressMeter(n_total, progress)
        self._statuses: dict[tuple[str, int], Status] = {}
        latest = {(row.sample_id, row.attempt): row for row in image_set.attempts}
        for row in latest.values():
            if row.status != "ok" or image_set.has_file(row):
                self._note(row.sample_id, row.attempt, row.status)
        self._meter.report()

    def due(self, samples: Iterable[Sample], attempt: int) -> Iterator[Sample]:
        """Yield the samples of one attempt: all, then those whose previous one gave no image."""
        for sample in samples:
            before = self._statuses.get((sample.sample_id, attempt - 1), "ok")
            if attempt == 0 or before != "ok":
                yield sample.redrawn(attempt)

    def has_all(self, batch: Sequence[Sample]) -> bool:
        return all((sample.sample_id, sample.attempt) in self._statuses for sample in batch)

    def record(self, drawn: Sequence[Drawn]) -> None:
        """Store what the set does not have yet.

        Raises:
            NonfiniteImagesError: Neither these images nor any before them are finite.
        """
        self._check_finite([one.row.status for one in drawn])
        for one in drawn:
            row = one.row
            if (row.sample_id, row.attempt) not in self._statuses:
                self._writer.add(row, one.png)
                self._note(row.sample_id, row.attempt, row.status)
        self._meter.report(len(drawn))

    def _check_finite(self, statuses: Sequence[Status]) -> None:
        is_first = all(status == "nonfinite" for status in self._statuses.values())
        n_drawn = len(self._statuses) + len(statuses)
        # A single image may have bad luck.
        if set(statuses) == {"nonfinite"} and is_first and n_drawn > 1:
            dtype = self._writer.meta["config"]["pipeline"]["dtype"]
            raise NonfiniteImagesError(
                f"the first {n_drawn} images are all NaN or infinite, so this pipeline cannot be "
                f"used in {dtype}; load it in another dtype, as with --dtype float32, and draw "
                "into another folder"
            )

    def _note(self, sample_id: str, attempt: int, status: Status) -> None:
        self._statuses[sample_id, attempt] = status
        self._meter.count(status, settled=status == "ok" or attempt == self._config.max_redraws)


def _meta(plan: GenerationPlan, facts: PipelineFacts, job: Job, n_workers: int) -> dict[str, Any]:
    config = job.config
    return {
        "config": {
            "plan": plan.describe(),
            "sampling": {
                **facts.sampling,
                "height": config.height,
                "width": config.width,
                "max_redraws": config.max_redraws,
                "blank_std": config.blank_std,
                # Left out where there are none, as in sets that were begun before these existed.
                **(
                    {"pipeline_arguments": dict(config.pipeline_arguments)}
                    if config.pipeline_arguments
                    else {}
                ),
            },
            "pipeline": facts.pipeline,
        },
        "model": facts.model,
        "versions": facts.versions,
        # Of the run that began the set; a later one may have others, and that may show in rounding.
        "execution": {
            "batch_size": job.batch_size,
            "device": facts.device,
            "n_workers": n_workers,
            **facts.execution,
        },
    }


_T = TypeVar("_T")


def _batches(items: Iterable[_T], batch_size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch
