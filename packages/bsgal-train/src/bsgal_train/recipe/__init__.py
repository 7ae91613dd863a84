"""Everything that decides what a run does."""

from bsgal_train.recipe.modes import EvidenceSource, LossKind
from bsgal_train.recipe.selection import ScoreForm, SelectionConfig
from bsgal_train.recipe.settings import (
    Architecture,
    BackboneNorm,
    CheckpointConfig,
    DataConfig,
    DetectorConfig,
    OptimizerConfig,
    PasteConfig,
    Precision,
    Recipe,
    ScheduleConfig,
)

__all__ = [
    "Architecture",
    "BackboneNorm",
    "CheckpointConfig",
    "DataConfig",
    "DetectorConfig",
    "EvidenceSource",
    "LossKind",
    "OptimizerConfig",
    "PasteConfig",
    "Precision",
    "Recipe",
    "ScheduleConfig",
    "ScoreForm",
    "SelectionConfig",
]
