"""Limit how many predictions count: per image (LVIS) or per category (fixed AP).

The two give different numbers for the same predictions, so every result names its protocol.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FIXED_AP", "LVIS", "Prediction", "Protocol"]

Prediction = Mapping[str, Any]


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

    def keep(self, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Return the predictions that count.

        Of predictions with equal scores the earlier one is preferred.
        """
        groups: defaultdict[int, list[Prediction]] = defaultdict(list)
        for prediction in predictions:
            groups[prediction[f"{self.per}_id"]].append(prediction)
        kept: list[Prediction] = []
        for group in groups.values():
            if len(group) > self.max_detections:
                group.sort(key=lambda prediction: -prediction["score"])
            kept += group[: self.max_detections]
        return kept


LVIS = Protocol(name="lvis", max_detections=300, per="image")
"""LVIS's own rule (Gupta, Dollár and Girshick, 2019)."""

FIXED_AP = Protocol(name="fixed-ap", max_detections=10_000, per="category")
"""No limit per image, so that categories do not compete for places (Dave et al., 2021,
https://arxiv.org/abs/2102.01066)."""
