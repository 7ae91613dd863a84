"""Turns a plan into an image set, and goes on where an earlier run stopped."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ._image_set import ImageRow, ImageSet, ImageSetWriter, Status
from ._judge import Judged, judge
from ._memory import BatchDrawer
from ._pipelines import Drawing, ImagePipeline
from ._plan import GenerationPlan, Sample
from .config import SamplingConfig
from .progress import ProgressCallback, ProgressMeter

_LIBRARIES = ("bsgal-generate", "torch", "diffusers", "transformers", "numpy", "pillow")


def generate(
    plan: GenerationPlan,
    pipeline: ImagePipeline,
    out_dir: str | Path,
    *,
    config: SamplingConfig | None = None,
    batch_size: int = 8,
    progress: ProgressCallback | None = None,
) -> ImageSet:
    """Draw every sample of a plan into an image set.

    Batches are cut from the plan by position, and redraws follow in rounds of their own, so a run
    that was killed draws the same batches again when it is continued: its images are the same to
    the last bit on the same machine. Where the batch size differs, pixels may differ by rounding.

    Args:
        plan: What to draw.
        pipeline: What draws it, from `load_pipeline`.
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
    """
    config = config or SamplingConfig()
    drawer = BatchDrawer(pipeline, config, batch_size)
    pipeline.check(config, plan.negative_prompt)
    with ImageSetWriter(out_dir, _meta(plan, pipeline, config, batch_size)) as writer:
        recorder = _Recorder(writer, ImageSet.open(out_dir), len(plan), config, progress)
        for attempt in range(config.max_redraws + 1):
            for batch in _batches(recorder.due(plan, attempt), batch_size):
                if not recorder.has_all(batch):
                    for piece, drawing in drawer.draw(batch):
                        recorder.record(piece, drawing, pipeline)
    return ImageSet.open(out_dir)


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

    def due(self, plan: GenerationPlan, attempt: int) -> Iterator[Sample]:
        """Yield the samples of one round: all, then those whose previous attempt gave no image."""
        for sample in plan:
            before = self._statuses.get((sample.sample_id, attempt - 1), "ok")
            if attempt == 0 or before != "ok":
                yield sample.redrawn(attempt)

    def has_all(self, batch: Sequence[Sample]) -> bool:
        return all((sample.sample_id, sample.attempt) in self._statuses for sample in batch)

    def record(self, piece: Sequence[Sample], drawing: Drawing, pipeline: ImagePipeline) -> None:
        """Judge what was drawn, and store what the set does not have yet."""
        for i, sample in enumerate(piece):
            if not self.has_all([sample]):
                judged = judge(drawing, i, self._config.blank_std)
                image_hw = drawing.pixels.shape[1:3]
                self._writer.add(
                    _row(sample, judged, pipeline, self._config, image_hw), judged.image
                )
                self._note(sample.sample_id, sample.attempt, judged.status)
        self._meter.report(len(piece))

    def _note(self, sample_id: str, attempt: int, status: Status) -> None:
        self._statuses[sample_id, attempt] = status
        self._meter.count(status, settled=status == "ok" or attempt == self._config.max_redraws)


def _row(
    sample: Sample,
    judged: Judged,
    pipeline: ImagePipeline,
    config: SamplingConfig,
    image_hw: tuple[int, ...],
) -> ImageRow:
    steps, guidance = pipeline.resolve(config)
    return ImageRow(
        sample_id=sample.sample_id,
        category_id=sample.category_id,
        category_name=sample.category_name,
        prompt_id=sample.prompt_id,
        prompt=sample.prompt,
        negative_prompt=sample.negative_prompt,
        seed=sample.seed,
        attempt=sample.attempt,
        model=pipeline.model_id,
        scheduler=pipeline.scheduler_name,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=image_hw[0],
        width=image_hw[1],
        file=None,
        sha256=None,
        status=judged.status,
        reason=judged.reason,
    )


def _meta(
    plan: GenerationPlan, pipeline: ImagePipeline, config: SamplingConfig, batch_size: int
) -> dict[str, Any]:
    steps, guidance = pipeline.resolve(config)
    return {
        "config": {
            "plan": plan.describe(),
            "sampling": {
                "num_inference_steps": steps,
                "guidance_scale": guidance,
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
            "pipeline": pipeline.describe(),
        },
        "model": {
            "id": pipeline.model_id,
            "revision": pipeline.revision,
            "weight_hash": pipeline.weight_hash,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        # Of the run that began the set; a later one may have others, and that may show in rounding.
        "execution": {"batch_size": batch_size, "device": pipeline.device},
    }


_T = TypeVar("_T")


def _batches(items: Iterable[_T], batch_size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch
