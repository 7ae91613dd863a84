"""Paste generated instances into annotated photographs.

NumPy in, NumPy out: an `InstancePool` holds cut-out instances, a sampler chooses some of them,
`CopyPaste` pastes them into an `AnnotatedImage` and keeps masks, boxes and provenance in step.
"""

from __future__ import annotations

from importlib.metadata import version

from bsgal_paste._annotated_image import AnnotatedImage, tight_boxes_xyxy
from bsgal_paste._apply import PasteResult, RemovedInstance, apply_cutouts
from bsgal_paste._blend import BLEND_MODES, BlendMode
from bsgal_paste._category_weights import Cooccurrence, FrequencyGroups, RepeatFactors
from bsgal_paste._copy_paste import CopyPaste, PasteParameters
from bsgal_paste._cutout import Cutout
from bsgal_paste._names import normalise_category_name
from bsgal_paste._pool import InstancePool, PoolCard, PoolInstance
from bsgal_paste._samplers import (
    CategoryBalancedSampler,
    CategoryWeightedSampler,
    FixedSampler,
    Sampler,
    UniformSampler,
)
from bsgal_paste._scale import NormalScale, ScaleEntry, ScaleRule, ScaleStatistics, UniformScale
from bsgal_paste._visibility import OfficialVisibility, VisibilityRule, VisibleShare
from bsgal_paste.config import PRESETS, PasteConfig
from bsgal_paste.errors import (
    AnnotationError,
    CorruptInstanceError,
    EmptyPoolError,
    NoCommonCategoryError,
    PoolFormatError,
)

__version__ = version("bsgal-paste")

__all__ = [
    "BLEND_MODES",
    "PRESETS",
    "AnnotatedImage",
    "AnnotationError",
    "BlendMode",
    "CategoryBalancedSampler",
    "CategoryWeightedSampler",
    "Cooccurrence",
    "CopyPaste",
    "CorruptInstanceError",
    "Cutout",
    "EmptyPoolError",
    "FixedSampler",
    "FrequencyGroups",
    "InstancePool",
    "NoCommonCategoryError",
    "NormalScale",
    "OfficialVisibility",
    "PasteConfig",
    "PasteParameters",
    "PasteResult",
    "PoolCard",
    "PoolFormatError",
    "PoolInstance",
    "RemovedInstance",
    "RepeatFactors",
    "Sampler",
    "ScaleEntry",
    "ScaleRule",
    "ScaleStatistics",
    "UniformSampler",
    "UniformScale",
    "VisibilityRule",
    "VisibleShare",
    "__version__",
    "apply_cutouts",
    "normalise_category_name",
    "tight_boxes_xyxy",
]
