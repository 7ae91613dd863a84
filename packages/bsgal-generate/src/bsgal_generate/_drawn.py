"""Draws a batch and turns it into what the set stores: a row and, where there is one, a file."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ._image_set import ImageRow
from ._images import encode_png
from ._judge import Judged, judge
from ._memory import BatchDrawer
from ._pipelines import ImagePipeline
from ._plan import Sample
from .config import SamplingConfig

_LIBRARIES = ("bsgal-generate", "torch", "diffusers", "transformers", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One attempt, ready to be stored.

    Attributes:
        row: Its row, without file and hash.
        png: The image as the bytes of a PNG file; None if it is not to be kept.
    """

    row: ImageRow
    png: bytes | None


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """What `meta.json` says of the pipeline, as JSON values.

    Attributes:
        sampling: Number of steps and guidance scale as the pipeline will use them.
        pipeline: Class, dtype and scheduler settings.
        model: Id, revision and weight hash.
        versions: Versions of Python and of the libraries.
        device: Where it runs.
        execution: How it runs, where that may show in rounding.
    """

    sampling: dict[str, Any]
    pipeline: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]
    device: str
    execution: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all batches of a run.

    Attributes:
        config: The sampling settings.
        batch_size: Most images in one call of the pipeline.
        negative_prompt: The plan's negative prompt.
    """

    config: SamplingConfig
    batch_size: int
    negative_prompt: str | None


class BatchArtist:
    """Draws one batch after the other with one pipeline.

    Args:
        pipeline: The pipeline.
        job: The settings of the run.

    Raises:
        ValueError: The pipeline does not take one of the settings, or the batch size is no size.
    """

    def __init__(self, pipeline: ImagePipeline, job: Job) -> None:
        self._pipeline = pipeline
        self._config = job.config
        self._drawer = BatchDrawer(pipeline, job.config, job.batch_size)
        pipeline.check(job.config, job.negative_prompt)

    def facts(self) -> PipelineFacts:
        """Return what is to be recorded of the pipeline."""
        pipeline = self._pipeline
        steps, guidance = pipeline.resolve(self._config)
        return PipelineFacts(
            sampling={"num_inference_steps": steps, "guidance_scale": guidance},
            pipeline=pipeline.describe(),
            model={
                "id": pipeline.model_id,
                "revision": pipeline.revision,
                "weight_hash": pipeline.weight_hash,
            },
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in _LIBRARIES},
            },
            device=pipeline.device,
            execution=pipeline.execution,
        )

    def draw(self, batch: Sequence[Sample]) -> Iterator[list[Drawn]]:
        """Yield a batch in the pieces that fitted into memory."""
        for piece, drawing in self._drawer.draw(batch):
            image_hw = drawing.pixels.shape[1:3]
            yield [
                self._drawn(sample, judge(drawing, i, self._config.blank_std), image_hw)
                for i, sample in enumerate(piece)
            ]

    def _drawn(self, sample: Sample, judged: Judged, image_hw: tuple[int, ...]) -> Drawn:
        steps, guidance = self._pipeline.resolve(self._config)
        row = ImageRow(
            sample_id=sample.sample_id,
            category_id=sample.category_id,
            category_name=sample.category_name,
            kind=sample.kind,
            prompt_id=sample.prompt_id,
            prompt=sample.prompt,
            negative_prompt=sample.negative_prompt,
            seed=sample.seed,
            attempt=sample.attempt,
            model=self._pipeline.model_id,
            scheduler=self._pipeline.scheduler_name,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=image_hw[0],
            width=image_hw[1],
            file=None,
            sha256=None,
            status=judged.status,
            reason=judged.reason,
        )
        return Drawn(row, None if judged.image is None else encode_png(judged.image))
