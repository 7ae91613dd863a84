"""Limit how many predictions count: per image (LVIS) or per category (fixed AP).

The two give different numbers for the same predictions, so every result names its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bsgal_train.evaluation.run_lengths import run_bounds

__all__ = ["FIXED_AP", "LVIS", "Protocol"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A named rule for which predictions count."""

    name: str
    max_detections: int
    """Only so many predictions with the highest scores count ..."""
    per: Literal["image", "category"]
    """... in each image over all categories, or of each category over all images."""

    def __post_init__(self) -> None:
        """Check the limit."""
        if self.max_detections < 1:
            raise ValueError(f"`max_detections` must be at least 1, got {self.max_detections}")

    def __str__(self) -> str:
        """Name the protocol with its limit."""
        return f"{self.name} ({self.max_detections} detections per {self.per})"

    def kept(
        self,
        image_id: npt.NDArray[np.int64],
        category_id: npt.NDArray[np.int64],
        score: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.bool_]:
        """Say which of N predictions count.

        Of predictions with equal scores the earlier one is preferred.

        Args:
            image_id: (N,).
            category_id: (N,).
            score: (N,).
        """
        group = image_id if self.per == "image" else category_id
        order = np.lexsort((-score, group))
        bounds = run_bounds(group[order])
        rank = np.arange(len(order)) - np.repeat(bounds[:-1], np.diff(bounds))
        kept = np.zeros(len(order), dtype=np.bool_)
        kept[order[rank < self.max_detections]] = True
        return kept


LVIS = Protocol(name="lvis", max_detections=300, per="image")
"""LVIS's own rule (Gupta, Dollár and Girshick, 2019)."""

FIXED_AP = Protocol(name="fixed-ap", max_detections=10_000, per="category")
"""No limit per image, so that categories do not compete for places (Dave et al., 2021,
https://arxiv.org/abs/2102.01066)."""
