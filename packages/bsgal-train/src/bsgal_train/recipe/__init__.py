"""Everything that decides what a run does."""

from bsgal_train.recipe.settings import (
    Architecture,
    BackboneNorm,
    CheckpointConfig,
    DataConfig,
    DetectorConfig,
    LossKind,
    OptimizerConfig,
    PasteConfig,
    Precision,
    Recipe,
    ScheduleConfig,
    ScoreForm,
    SelectionConfig,
    SelectionMode,
)

__all__ = [
    "Architecture",
    "BackboneNorm",
    "CheckpointConfig",
    "DataConfig",
    "DetectorConfig",
    "LossKind",
    "OptimizerConfig",
    "PasteConfig",
    "Precision",
    "Recipe",
    "ScheduleConfig",
    "ScoreForm",
    "SelectionConfig",
    "SelectionMode",
]
