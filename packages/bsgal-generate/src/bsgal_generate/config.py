"""Every setting: what is drawn, how, with which pipeline and on what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_SET_ELSEWHERE = (
    "prompt",
    "negative_prompt",
    "generator",
    "output_type",
    "num_images_per_prompt",
    "return_dict",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Settings of the denoising and of the checks on its result.

    They are written to `meta.json`, and a run that continues an image set must have the same ones.
    """

    num_inference_steps: int | None = None
    """Denoising steps; None takes the pipeline's own default (20 for `tiny`)."""

    guidance_scale: float | None = None
    """Strength of the prompt; None takes the pipeline's own default (3.0 for `tiny`)."""

    height: int | None = None
    """Image height in pixels; None takes the size the pipeline was trained for."""

    width: int | None = None
    """Image width in pixels; None takes the size the pipeline was trained for."""

    max_redraws: int = 2
    """How often a flagged, blank or non-finite image is drawn again with another seed."""

    blank_std: float = 1.0
    """An image is blank if no colour channel's standard deviation reaches this, in grey levels."""

    pipeline_arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of the pipeline's call, JSON values, such as `{"eta": 0.5}`."""

    def __post_init__(self) -> None:
        for name, value in self.pipeline_arguments.items():
            if name in _SET_ELSEWHERE or name in self.__slots__:
                raise ValueError(
                    f"`pipeline_arguments` must not hold {name!r}; it is set elsewhere"
                )
            if not _is_json(value):
                raise ValueError(
                    f"`pipeline_arguments` must hold JSON values, got {value!r} for {name!r}"
                )
        for name in ("num_inference_steps", "height", "width"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` must be None or an int of at least 1, got {value!r}")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"`guidance_scale` must be finite, got {self.guidance_scale!r}")
        if type(self.max_redraws) is not int or self.max_redraws < 0:
            raise ValueError(
                f"`max_redraws` must be an int of at least 0, got {self.max_redraws!r}"
            )
        if not 0 <= self.blank_std < math.inf:
            raise ValueError(
                f"`blank_std` must be at least 0 and finite, in grey levels, got {self.blank_std!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """What is drawn; see `GenerationPlan`."""

    images_per_category: int | None = None
    """Images of each category; of scenes in all, with a kept target in the first round (none: the
    target)."""

    templates: tuple[str, ...] = ("single",)
    """Prompt templates: single, single_noun, single_plain, divergen, or your own as ID=TEXT with
    {name}, {noun} or {definition}."""

    prompts: str | None = None
    """Folder of <category_id>.txt, one prompt a line, which replace the templates there."""

    negative_prompt: str | None = None
    """What to steer away from."""

    seed: int = 0
    """Seed of the whole run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """What draws; see `load_pipeline`."""

    model: str = "tiny"
    """The built-in tiny, a folder in diffusers' layout, or a hub id."""

    revision: str | None = None
    """Commit or branch of a hub id; allows downloading it."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format; none takes bfloat16 on a GPU, or float16 where it has none, and float32 on a
    CPU."""

    scheduler: str | None = None
    """Class name of another diffusers scheduler; none keeps the pipeline's own."""

    upscaler: str | None = None
    """Second stage of a two-stage model such as DeepFloyd IF: a folder or a hub id."""

    upscaler_revision: str | None = None
    """Commit or branch of the upscaler's hub id; allows downloading it."""

    attention_slicing: bool = False
    """Whether attention takes less memory and more time."""

    compile_backend: str | None = None
    """Compile the denoiser with this backend, such as inductor: minutes for the first batch of
    every size; none does not compile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersConfig:
    """Where it runs. None of this decides what an image shows."""

    devices: tuple[str, ...] = ()
    """Devices such as cuda:0 or cpu, for each of several a process of its own; none given takes a
    GPU if there is one."""

    batch_size: int = 8
    """Images at a time."""

    ray_workers: int | None = None
    """Workers on a Ray cluster, instead of devices."""

    gpus_per_worker: float = 1.0
    """GPUs that each Ray worker takes; 0 runs it on CPUs."""

    ray_address: str | None = None
    """The Ray cluster; none takes $RAY_ADDRESS, or else one on this computer alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsConfig:
    """How many images a number of kept instances takes; see `next_round`."""

    kept_target: int | None = None
    """Instances that each category is to have in the pool, drawn round by round; none draws the
    images per category."""

    cap: int = 1000
    """Most images of a category, with a kept target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """Hold all tables of a settings file."""

    plan: PlanConfig = field(default_factory=PlanConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)


def _is_json(value: object) -> bool:
    """Return whether a value is the same after it was written to a file and read again."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
