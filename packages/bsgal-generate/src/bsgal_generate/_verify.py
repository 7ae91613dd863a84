"""Draws some images of a set again and compares them with the stored ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ._image_set import ImageRow, ImageSet
from ._memory import BatchDrawer
from ._meta import META_NAME, setting
from ._pipelines import ImagePipeline
from ._plan import Sample
from .config import SamplingConfig
from .errors import ConfigChangedError, ImageSetError


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How far newly drawn images are from the stored ones.

    Attributes:
        grey_level_differences: Largest difference of any pixel and channel, in levels of 255, for
            every sample that was drawn again.
        damaged: Why a chosen sample's stored image could not be read or compared, by sample id.
    """

    grey_level_differences: dict[str, int]
    damaged: dict[str, str]

    @property
    def largest_difference(self) -> int:
        """The largest difference over all samples, in levels of 255; 0 if none were drawn."""
        return max(self.grey_level_differences.values(), default=0)


def verify(
    image_set: ImageSet,
    pipeline: ImagePipeline,
    *,
    n_rows: int = 8,
    seed: int = 0,
    batch_size: int = 8,
) -> VerifyReport:
    """Draw a random choice of a set's images again.

    The same seeds give the same initial noise everywhere; pixels agree up to rounding, which
    depends on the device, the batch size and the library versions.

    Args:
        image_set: The set to check.
        pipeline: The pipeline it was made with.
        n_rows: How many images to draw again; all, if there are fewer.
        seed: Seed of the choice.
        batch_size: Images in one call of the pipeline.

    Returns:
        The differences found.

    Raises:
        ConfigChangedError: The pipeline has other weights or another scheduler than the set's.
        ImageSetError: The set has no images, or its meta file lacks a setting.
    """
    _check_same_pipeline(image_set, pipeline)
    kept = [row for row in image_set if row.status == "ok"]
    if not kept:
        raise ImageSetError(f"{image_set.root} has no images to verify")
    chosen = random.Random(seed).sample(kept, min(n_rows, len(kept)))
    drawer = BatchDrawer(pipeline, _sampling(image_set), batch_size)
    differences: dict[str, int] = {}
    damaged: dict[str, str] = {}
    for start in range(0, len(chosen), batch_size):
        rows = chosen[start : start + batch_size]
        for sample, pixels in _drawn(drawer, rows):
            row = next(row for row in rows if row.sample_id == sample.sample_id)
            try:
                stored = image_set.read_image(row)
            except ImageSetError as error:
                damaged[row.sample_id] = str(error)
                continue
            drawn = np.rint(np.nan_to_num(pixels).clip(0, 1) * 255)
            if drawn.shape != stored.shape:
                damaged[row.sample_id] = (
                    f"sample {row.sample_id}: an image of shape {stored.shape} is stored, and one "
                    f"of shape {drawn.shape} was drawn"
                )
                continue
            differences[row.sample_id] = int(np.abs(drawn - stored).max())
    return VerifyReport(differences, damaged)


def _drawn(drawer: BatchDrawer, rows: Sequence[ImageRow]) -> Any:
    samples = [
        Sample(
            row.sample_id,
            row.category_id,
            row.category_name,
            row.prompt_id,
            row.prompt,
            row.negative_prompt,
            row.seed,
            row.attempt,
            row.kind,
        )
        for row in rows
    ]
    for piece, drawing in drawer.draw(samples):
        yield from zip(piece, drawing.pixels, strict=True)


def _sampling(image_set: ImageSet) -> SamplingConfig:
    recorded = setting(image_set.meta, "config.sampling", image_set.root)
    known = {field.name for field in fields(SamplingConfig)}
    if unknown := recorded.keys() - known:
        raise ConfigChangedError(
            f"{image_set.root} was drawn with a setting that this version does not know: "
            f"{min(unknown)}"
        )
    try:
        return SamplingConfig(**recorded)
    except ValueError as error:
        raise ImageSetError(f"{image_set.root / META_NAME}, config.sampling: {error}") from error


def _check_same_pipeline(image_set: ImageSet, pipeline: ImagePipeline) -> None:
    def recorded(name: str) -> Any:
        return setting(image_set.meta, name, image_set.root)

    if (weight_hash := recorded("model.weight_hash")) != pipeline.weight_hash:
        raise ConfigChangedError(
            f"the set was drawn with {recorded('model.id')} of weight hash {weight_hash}, and "
            f"{pipeline.model_id} has {pipeline.weight_hash}; load the same weights as "
            f"{recorded('config.pipeline.dtype')}"
        )
    if (scheduler := recorded("config.pipeline.scheduler.class")) != pipeline.scheduler_name:
        raise ConfigChangedError(
            f"the set was drawn with {scheduler}, and the pipeline has {pipeline.scheduler_name}"
        )
