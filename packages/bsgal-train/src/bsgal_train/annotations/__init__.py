"""LVIS annotations: read, checked, and where a recipe's are."""

from bsgal_train.annotations.lvis import (
    Frequency,
    FrequencyLimits,
    ImageRecord,
    InstanceRecord,
    LvisAnnotations,
    LvisCategory,
    read_lvis_json,
)

__all__ = [
    "Frequency",
    "FrequencyLimits",
    "ImageRecord",
    "InstanceRecord",
    "LvisAnnotations",
    "LvisCategory",
    "read_lvis_json",
]
