"""Times a plan's first batch, for an estimate of the whole."""

from __future__ import annotations

import time
from itertools import islice

from ._memory import BatchDrawer
from ._pipelines import ImagePipeline
from ._plan import GenerationPlan
from .config import SamplingConfig


def seconds_per_image(
    plan: GenerationPlan, pipeline: ImagePipeline, config: SamplingConfig, batch_size: int
) -> float:
    """Draw the plan's first batch twice, keep nothing, and return the seconds per image.

    The first time warms up; the second is measured.
    """
    drawer = BatchDrawer(pipeline, config, batch_size)
    batch = list(islice(plan, batch_size))
    for _ in drawer.draw(batch):
        pass
    start = time.perf_counter()
    for _ in drawer.draw(batch):
        pass
    return (time.perf_counter() - start) / len(batch)
