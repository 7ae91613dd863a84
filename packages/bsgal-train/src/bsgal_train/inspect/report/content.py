"""What a report says: plain values, ready to be laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One row of the result table: a way of training and what it reached."""

    name: str
    """What was trained, as a reader would say it."""
    steps: int
    """Training steps taken; 0 for a detector that was only evaluated."""
    segm: Mapping[str, float]
    """Mask AP, APr, APc, APf in [0, 100]; NaN where the data holds no such category."""
    bbox: Mapping[str, float]
    """The same for boxes."""
    accepted_share: float | None = None
    """Share of judged steps whose pasted images were trained on; None where nothing was judged."""
    seconds_per_step: float | None = None
    """Median seconds of one training step."""
    cost_ratio: float | None = None
    """`seconds_per_step` over that of the arm without generated data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsRow:
    """All averages of one IoU type."""

    name: str
    values: Mapping[str, float]
    """By the metric's name, in [0, 100]; NaN where there is nothing to average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryRow:
    """How well one category was found, and what became of its generated instances."""

    category_id: int
    name: str
    frequency: str
    n_objects: int
    """Objects of it in the validation images."""
    segm_ap: float
    """Mask AP in [0, 100]; NaN without an object."""
    segm_ap50: float
    bbox_ap: float
    n_judged: int
    """How often an instance of it was accepted or rejected."""
    n_accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedInstance:
    """One generated instance and what was decided about it."""

    instance_id: str
    category: str
    frequency: str
    prompt: str
    picture_png: bytes
    contribution: float
    """Mean contribution over the times it was judged."""
    times_judged: int
    times_accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedInstance:
    """One generated instance that the evidence speaks against."""

    instance_id: str
    category: str
    frequency: str
    prompt: str
    picture_png: bytes
    p_value: float
    """Share of real objects that look as bad or worse, in [0, 1]."""
    n_looks: int
    against: Sequence[str]
    """What spoke against it, in words, the worst first."""
    real_pngs: Sequence[bytes]
    """Some real objects of its category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejections:
    """What evidence says of a pool."""

    n_instances: int
    n_rejected: int
    n_uncertain: int
    """Instances with too few looks for a verdict."""
    shown: Sequence[RejectedInstance]
    """The worst, in the order to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedStep:
    """One verdict over time."""

    step: int
    contribution: float
    threshold: float
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a chart."""

    name: str
    style: str
    """Class of its colour in the page's style sheet: `r`, `c`, `f`, or `ink`."""
    points: Sequence[tuple[float, float]]
    """(x, y), x rising; points that are not finite are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreHistogram:
    """How the scores of one frequency group are distributed."""

    title: str
    edges: Sequence[float]
    """n + 1 edges of n bins; the outer bins also hold what lies beyond."""
    n_accepted: Sequence[int]
    n_rejected: Sequence[int]
    threshold: float
    """Mean threshold of the verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """What a stage of the work took."""

    title: str
    seconds: float
    peak_memory_gib: float
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A line of the page's footing: a name and a value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything on the page."""

    title: str
    summary: str
    arms: Sequence[Arm] = ()
    verdict_note: str = ""
    """What one verdict covers (a batch, an image or an instance), in a sentence."""
    score_name: str = "score"
    """What contributions are, in a word or two."""
    metrics: Sequence[MetricsRow] = ()
    metrics_note: str = ""
    """The protocol, and what was evaluated."""
    losses: Sequence[Line] = ()
    evaluations: Sequence[Line] = ()
    """Results of evaluations during training."""
    acceptance: Sequence[Line] = ()
    """Accepted share in [0, 1] over steps, by frequency group."""
    histograms: Sequence[ScoreHistogram] = ()
    best_accepted: Sequence[JudgedInstance] = ()
    """Instances that were accepted every time, in the order to show."""
    worst_rejected: Sequence[JudgedInstance] = ()
    """Instances that were rejected at least once, in the order to show."""
    rejections: Rejections | None = None
    """What the evidence rejects, where the run judges by it; shown in place of `worst_rejected`."""
    steps: Sequence[JudgedStep] = ()
    categories: Sequence[CategoryRow] = ()
    notes: Sequence[str] = ()
    """What is missing from the page, and why."""
    stages: Sequence[StageTime] = ()
    facts: Sequence[Fact] = field(default_factory=tuple)
