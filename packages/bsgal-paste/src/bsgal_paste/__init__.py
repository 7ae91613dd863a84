"""Paste generated instances into annotated photographs.

NumPy in, NumPy out: an `InstancePool` holds cut-out instances, a sampler chooses some of them,
`CopyPaste` pastes them into an `AnnotatedImage` and keeps masks, boxes and provenance in step.
"""

from __future__ import annotations

from importlib.metadata import version

from bsgal_paste._annotated_image import AnnotatedImage, Origin, tight_boxes_xyxy
from bsgal_paste._annotation_checks import check_box, check_segmentation
from bsgal_paste._apply import PasteResult, RemovedInstance, apply_cutouts
from bsgal_paste._blend import BLEND_MODES, BlendMode
from bsgal_paste._category_weights import Cooccurrence, FrequencyGroups, RepeatFactors
from bsgal_paste._colour import ColourJitter
from bsgal_paste._copy_paste import SOURCES, CopyPaste, PasteParameters, Source, sample_rng
from bsgal_paste._cutout import Cutout
from bsgal_paste._donors import DonorParameters, Donors, ImageDonors, LvisDonors
from bsgal_paste._names import normalise_category_name
from bsgal_paste._polygons import mask_to_polygons
from bsgal_paste._pool import InstancePool, PoolCard, PoolInstance
from bsgal_paste._pool_sources import (
    lvis_pool,
    open_folder_pool,
    open_xpaste_pool,
    write_xpaste_json,
)
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
    SettingsError,
)

__version__ = version("bsgal-paste")

__all__ = [
    "BLEND_MODES",
    "PRESETS",
    "SOURCES",
    "AnnotatedImage",
    "AnnotationError",
    "BlendMode",
    "CategoryBalancedSampler",
    "CategoryWeightedSampler",
    "ColourJitter",
    "Cooccurrence",
    "CopyPaste",
    "CorruptInstanceError",
    "Cutout",
    "DonorParameters",
    "Donors",
    "EmptyPoolError",
    "FixedSampler",
    "FrequencyGroups",
    "ImageDonors",
    "InstancePool",
    "LvisDonors",
    "NoCommonCategoryError",
    "NormalScale",
    "OfficialVisibility",
    "Origin",
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
    "SettingsError",
    "Source",
    "UniformSampler",
    "UniformScale",
    "VisibilityRule",
    "VisibleShare",
    "__version__",
    "apply_cutouts",
    "check_box",
    "check_segmentation",
    "lvis_pool",
    "mask_to_polygons",
    "normalise_category_name",
    "open_folder_pool",
    "open_xpaste_pool",
    "sample_rng",
    "tight_boxes_xyxy",
    "write_xpaste_json",
]
