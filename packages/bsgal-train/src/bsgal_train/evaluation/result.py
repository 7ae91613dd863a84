"""Hold the result of an evaluation, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bsgal_train.annotations import Frequency
from bsgal_train.evaluation.protocol import Protocol

__all__ = ["SCHEMA", "CategoryResult", "LvisMetrics", "LvisResult"]

SCHEMA = "bsgal.lvis_result/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class LvisMetrics:
    """Averages over categories, between 0 and 1; None where there is no object to find."""

    ap: float | None
    """Average precision, over the IoU thresholds 0.50, 0.55, ..., 0.95."""
    ap50: float | None
    ap75: float | None
    aps: float | None
    """Of objects below 32 x 32 px."""
    apm: float | None
    """Of objects between 32 x 32 px and 96 x 96 px."""
    apl: float | None
    """Of objects above 96 x 96 px."""
    apr: float | None
    """Of rare categories."""
    apc: float | None
    """Of common categories."""
    apf: float | None
    """Of frequent categories."""
    ar: float | None
    """Average recall, over the same IoU thresholds."""
    ars: float | None
    arm: float | None
    arl: float | None
    ap_predicted: float | None
    """`ap` over the categories of which there is a prediction in a judged image; LVIS's own `ap`
    counts the others as 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryResult:
    """How well one category was found."""

    category_id: int
    name: str
    frequency: Frequency | None
    """Rare, common or frequent in training; None if the file does not say."""
    n_images: int
    """Images of the evaluated file that hold it."""
    n_instances: int
    """Objects of it in the evaluated file."""
    n_predictions: int
    """Predictions of it that were scored."""
    ap: Mapping[str, float | None]
    """By IoU type; None without an object."""
    ap50: Mapping[str, float | None]
    ar: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LvisResult:
    """Everything an evaluation says; numbers of different protocols must not be compared."""

    protocol: Protocol
    n_images: int
    n_instances: int
    n_predictions: int
    """Given predictions."""
    n_over_limit: int
    """Given predictions that the protocol's limit left out."""
    n_unjudged: int
    """Predictions left out because nobody looked for their category in their image."""
    metrics: Mapping[str, LvisMetrics]
    """By IoU type: `bbox`, `segm`."""
    categories: tuple[CategoryResult, ...]
    """In the order of their ids."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as an object of JSON's types."""
        return {"schema": SCHEMA, **asdict(self)}
