"""Score predictions as LVIS does: boxes and masks, by frequency group and by category."""

from __future__ import annotations

from bsgal_train.evaluation.evaluate import evaluate_lvis
from bsgal_train.evaluation.protocol import FIXED_AP, LVIS, Protocol
from bsgal_train.evaluation.result import CategoryResult, LvisMetrics, LvisResult
from bsgal_train.evaluation.shards import PredictionShards, PredictionWriter
from bsgal_train.evaluation.tables import category_table, summary_table

__all__ = [
    "FIXED_AP",
    "LVIS",
    "CategoryResult",
    "LvisMetrics",
    "LvisResult",
    "PredictionShards",
    "PredictionWriter",
    "Protocol",
    "category_table",
    "evaluate_lvis",
    "summary_table",
]
