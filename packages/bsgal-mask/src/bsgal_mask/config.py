"""Every setting of a pool, as the command line and its TOML file have them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bsgal_mask._border import BorderSegmenter
from bsgal_mask._choice import AgreementChoice, CategoryBar
from bsgal_mask._clean_up import CleanUp
from bsgal_mask._edges import Edges
from bsgal_mask._filters import AreaFilter, BlurFilter, BorderContactFilter, PartsFilter

MethodName = Literal["border", "u2net", "clipseg", "sam_background", "sam_box", "alpha"]
FilterName = Literal["area", "border_contact", "parts", "blur"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """What a run does with every image."""

    methods: tuple[MethodName, ...] = ("border",)
    """Methods that find the object; all are run."""
    choose: Literal["fixed", "agreement", "clip"] = "fixed"
    """Whose mask is taken: the first method's; that of the one closest to the others, and images
    where they differ are dropped; or that of the one whose object, on white, fits the category's
    name best."""
    filters: tuple[FilterName, ...] = ("area", "parts")
    """Rules that drop cut-outs, in this order; each has its settings in a table of that name."""
    label_mask_threshold: int = 128
    """The label mask is where alpha is at least this, 1 to 255."""
    batch_size: int = 8
    """Images in memory at a time."""
    max_image_px: int = 64_000_000
    """Images with more pixels (width times height) are dropped."""
    licence: str | None = None
    """Licence of the images, which the pool's card states; none leaves it to what drew them, if
    that is known."""
    device: str = "cpu"
    """Torch device of clipseg, SAM and CLIP, such as cuda; never another one instead."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of clipseg, SAM and CLIP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class U2NetConfig:
    """See `U2NetSegmenter`."""

    model: str | None = None
    """ONNX file of the U2-Net family; none takes the installed u2netp."""
    provider: str = "CPUExecutionProvider"
    """ONNX Runtime execution provider; never another one instead."""
    n_threads: int = 2
    """CPU threads of the model."""
    batch_size: int = 4
    """Images per run of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSegConfig:
    """See `ClipSegSegmenter`."""

    model: str | None = None
    """CLIPSeg: a folder, or ID@REVISION of a hub, such as CIDAS/clipseg-rd64-refined."""
    batch_size: int = 4
    """Images per run of the model."""
    template: str = "a photo of a {}"
    """The text that is looked for; {} is the category's name."""
    stretch: bool = True
    """Whether to stretch the probabilities to [0, 1]."""
    min_peak: float = 0.0
    """Probability, 0 to 1, that some pixel must reach before the stretch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamConfig:
    """See `Sam`, `SamBackgroundSegmenter` and `SamBoxSegmenter`."""

    model: str | None = None
    """SAM: a folder, or ID@REVISION of a hub, such as facebook/sam-vit-base."""
    batch_size: int = 2
    """Images per run of the model."""
    corner_margin_frac: float = 0.01
    """How far from its corner a point of sam_background lies, as a share of each side."""
    box_from: Literal["border", "u2net", "clipseg"] = "border"
    """Method that finds the boxes of sam_box."""
    box_margin_frac: float = 0.02
    """By how much each side of such a box is moved outwards, as a share of its length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """See `Clip` and `ClipChoice`."""

    model: str | None = None
    """CLIP: a folder, or ID@REVISION of a hub, such as openai/clip-vit-large-patch14; for choosing
    by CLIP and for the comparison with real objects."""
    batch_size: int = 16
    """Images or texts per run of the model."""
    template: str = "a photo of {}"
    """The text that objects are compared with when choosing; {} is the category's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarityConfig:
    """See `SimilarityRule` and `RealCrops.from_lvis`."""

    annotations: str | None = None
    """LVIS annotations of real objects; what looks unlike them is dropped, and none compares with
    nothing."""
    image_dir: str | None = None
    """Folder of the annotations' images."""
    cache: str | None = None
    """.npz file that keeps the real objects' features for later runs; none computes them anew."""
    max_per_category: int = 100
    """Real objects of a category that are used."""
    min_similarity: float = 0.6
    """Least mean cosine, -1 to 1, with the real objects of the category in CLIP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskConfig:
    """Hold all tables of a settings file."""

    pool: PoolConfig = field(default_factory=PoolConfig)
    border: BorderSegmenter = field(default_factory=BorderSegmenter)
    u2net: U2NetConfig = field(default_factory=U2NetConfig)
    clipseg: ClipSegConfig = field(default_factory=ClipSegConfig)
    sam: SamConfig = field(default_factory=SamConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    agreement: AgreementChoice = field(default_factory=AgreementChoice)
    category_bar: CategoryBar = field(default_factory=CategoryBar)
    area: AreaFilter = field(default_factory=AreaFilter)
    border_contact: BorderContactFilter = field(default_factory=BorderContactFilter)
    parts: PartsFilter = field(default_factory=PartsFilter)
    blur: BlurFilter = field(default_factory=BlurFilter)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    clean_up: CleanUp = field(default_factory=CleanUp)
    edges: Edges = field(default_factory=Edges)
