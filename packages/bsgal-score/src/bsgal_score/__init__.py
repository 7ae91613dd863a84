"""Gradient caches, contributions and verdicts: which generated units are worth training on."""

from importlib.metadata import version

from . import errors, ops
from ._cache import GradientCache
from ._class_rows import ClassRowScorer
from ._distributed import joint_contribution, joint_sketched_contribution
from ._evidence_book import EvidenceBook
from ._evidence_table import EvidenceTable
from ._ghost import GhostScorer
from ._looks import Source
from ._loss_difference import loss_difference
from ._policies import (
    FixedThreshold,
    LinearSchedule,
    PerGroup,
    Policy,
    QuantileThreshold,
    ReferenceQuantile,
)
from ._prototypes import Prototypes
from ._sketch import CountSketch, SketchStore
from ._small_loss import SmallLoss
from ._step_model import StepModel
from ._unit_index import IGNORED, REFERENCE
from ._unit_scores import UnitScores
from ._verdict import Decision, Verdict

__all__ = [
    "IGNORED",
    "REFERENCE",
    "ClassRowScorer",
    "CountSketch",
    "Decision",
    "EvidenceBook",
    "EvidenceTable",
    "FixedThreshold",
    "GhostScorer",
    "GradientCache",
    "LinearSchedule",
    "PerGroup",
    "Policy",
    "Prototypes",
    "QuantileThreshold",
    "ReferenceQuantile",
    "SketchStore",
    "SmallLoss",
    "Source",
    "StepModel",
    "UnitScores",
    "Verdict",
    "__version__",
    "errors",
    "joint_contribution",
    "joint_sketched_contribution",
    "loss_difference",
    "ops",
]

__version__ = version("bsgal-score")
