"""Generate single-object images for every category of a data set, reproducibly."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ._categories import Category, load_categories
from ._funnel import CategoryFunnel, funnel
from ._image_set import ImageRow, ImageSet
from ._kept_target import Round, next_round
from ._plan import GenerationPlan, Sample, derive_seed
from ._prompt_files import load_prompts
from ._scenes import SCENE_PROMPTS, scene_plan
from ._templates import TEMPLATES, PromptTemplate
from .config import SamplingConfig
from .errors import SettingsError
from .progress import GenerationProgress

if TYPE_CHECKING:
    from ._device_workers import DeviceWorkers
    from ._generate import generate
    from ._pipelines import ImagePipeline, load_pipeline, tiny_pipeline_path
    from ._ray_workers import RayWorkers
    from ._verify import VerifyReport, verify

__version__ = version("bsgal-generate")

__all__ = [
    "SCENE_PROMPTS",
    "TEMPLATES",
    "Category",
    "CategoryFunnel",
    "DeviceWorkers",
    "GenerationPlan",
    "GenerationProgress",
    "ImagePipeline",
    "ImageRow",
    "ImageSet",
    "PromptTemplate",
    "RayWorkers",
    "Round",
    "Sample",
    "SamplingConfig",
    "SettingsError",
    "VerifyReport",
    "derive_seed",
    "funnel",
    "generate",
    "load_categories",
    "load_pipeline",
    "load_prompts",
    "next_round",
    "scene_plan",
    "tiny_pipeline_path",
    "verify",
]

# These need torch, which is slow to import, so they are loaded when first used.
_LAZY = {
    "DeviceWorkers": "_device_workers",
    "RayWorkers": "_ray_workers",
    "generate": "_generate",
    "ImagePipeline": "_pipelines",
    "load_pipeline": "_pipelines",
    "tiny_pipeline_path": "_pipelines",
    "VerifyReport": "_verify",
    "verify": "_verify",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
