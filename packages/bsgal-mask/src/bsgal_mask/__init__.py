"""Cut the object out of single-object images and keep the good cut-outs as an instance pool."""

from importlib.metadata import version

from bsgal_mask._border import BorderSegmenter
from bsgal_mask._build import Progress, build_pool
from bsgal_mask._choice import (
    AgreementChoice,
    Candidates,
    CategoryBar,
    Choice,
    Chosen,
    FixedChoice,
)
from bsgal_mask._clean_up import CleanUp
from bsgal_mask._clip import Clip
from bsgal_mask._clip_choice import ClipChoice
from bsgal_mask._clipseg import ClipSegSegmenter
from bsgal_mask._edges import Edges
from bsgal_mask._filters import AreaFilter, BlurFilter, BorderContactFilter, Filter, PartsFilter
from bsgal_mask._image_set import ImageRow, ImageSet
from bsgal_mask._own_alpha import AlphaSegmenter
from bsgal_mask._sam import Sam, SamBackgroundSegmenter, SamBoxSegmenter
from bsgal_mask._scores import confidence, intersection_over_union, sharpness
from bsgal_mask._segmenter import Segmenter
from bsgal_mask._similarity import RealCrops, SimilarityRule
from bsgal_mask._summary import PoolSummary, summarise_pool
from bsgal_mask._u2net import U2NetSegmenter
from bsgal_mask._u2netp_file import find_u2netp, install_u2netp, user_model_path
from bsgal_mask._verify import VerifyReport, verify_pool
from bsgal_mask.errors import (
    ImageError,
    ImageSetError,
    MissingModelError,
    PoolError,
    RealCropError,
    SegmentationError,
    SettingsError,
)

__all__ = [
    "AgreementChoice",
    "AlphaSegmenter",
    "AreaFilter",
    "BlurFilter",
    "BorderContactFilter",
    "BorderSegmenter",
    "Candidates",
    "CategoryBar",
    "Choice",
    "Chosen",
    "CleanUp",
    "Clip",
    "ClipChoice",
    "ClipSegSegmenter",
    "Edges",
    "Filter",
    "FixedChoice",
    "ImageError",
    "ImageRow",
    "ImageSet",
    "ImageSetError",
    "MissingModelError",
    "PartsFilter",
    "PoolError",
    "PoolSummary",
    "Progress",
    "RealCropError",
    "RealCrops",
    "Sam",
    "SamBackgroundSegmenter",
    "SamBoxSegmenter",
    "SegmentationError",
    "Segmenter",
    "SettingsError",
    "SimilarityRule",
    "U2NetSegmenter",
    "VerifyReport",
    "build_pool",
    "confidence",
    "find_u2netp",
    "install_u2netp",
    "intersection_over_union",
    "sharpness",
    "summarise_pool",
    "user_model_path",
    "verify_pool",
]

__version__ = version("bsgal-mask")
