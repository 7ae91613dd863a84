"""Rules that choose one method's mask where several methods segmented an image."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._scores import intersection_over_union
from bsgal_mask._segmenter import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """What a rule chooses from: one image and every method's mask of it."""

    image: Image
    """uint8 RGB (H, W, 3)."""
    category_name: str
    labels: Mapping[str, NDArray[np.bool_]]
    """The bool label mask (H, W) of each method, in the run's order."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A rule's outcome for one image."""

    method: str
    agreement: float | None
    """Mean IoU of the chosen label mask with those of the other methods; None if it ran alone."""
    reason: str | None = None
    """Why the image is dropped all the same, as `code: detail`; None keeps it."""
    clip_score: float | None = None
    """Cosine between the image and the text features, in [-1, 1], where the rule computed it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryBar:
    """The CLIP score that an image must reach, lower for a category that never reaches it.

    X-Paste's rule: the bar of a category is `min_score`, or its best score less `tolerance` where
    that is lower, so that no category becomes empty. X-Paste multiplies scores by 100: its 21 and
    1 are our 0.21 and 0.01. The best score is here that of images which pass all other rules; one
    which another rule drops would otherwise empty its category.
    """

    min_score: float = 0.21
    """CLIP score that an image must reach, a cosine in [-1, 1]."""
    tolerance: float = 0.01
    """How far below its best image's score a poor category's bar lies, at least 0."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not -1 <= self.min_score <= 1:
            raise ValueError(f"`min_score` must lie in [-1, 1], got {self.min_score}")
        if not 0 <= self.tolerance <= 2:
            raise ValueError(f"`tolerance` must lie in [0, 2], got {self.tolerance}")

    def of_category(self, best_score: float) -> float:
        """Return the bar of a category whose best image has this score."""
        return min(self.min_score, best_score - self.tolerance)

    def config(self) -> dict[str, Any]:
        """Return the settings."""
        return dataclasses.asdict(self)


class Choice(Protocol):
    """Choose between methods."""

    @property
    def category_bar(self) -> CategoryBar | None:
        """What the images' CLIP scores must reach; None if the rule computes none."""

    def check(self, methods: Sequence[str]) -> None:
        """Raise `ValueError` if the rule does not fit the methods of a run."""

    def choose(self, batch: Sequence[Candidates]) -> list[Chosen]:
        """Return the method to take for each image; no image's depends on the others."""

    def config(self) -> Mapping[str, Any]:
        """Return the settings as JSON values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedChoice:
    """Always take the same method; the others only serve to record the agreement."""

    method: str | None = None
    """Name of the method; None takes the run's first."""

    @property
    def category_bar(self) -> None:
        """See `Choice.category_bar`."""

    def check(self, methods: Sequence[str]) -> None:
        """See `Choice.check`."""
        if self.method is not None and self.method not in methods:
            raise ValueError(
                f"`method` must be one that the run uses ({', '.join(methods)}), "
                f"got {self.method!r}"
            )

    def choose(self, batch: Sequence[Candidates]) -> list[Chosen]:
        """See `Choice.choose`."""
        return [self._choose(candidates.labels) for candidates in batch]

    def _choose(self, labels: Mapping[str, NDArray[np.bool_]]) -> Chosen:
        method = next(iter(labels)) if self.method is None else self.method
        return Chosen(method, mean_agreements(labels).get(method))

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return {"rule": "fixed", "method": self.method}


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementChoice:
    """Take the method that agrees best with the others; drop the image where even that is poor.

    With two methods both agree equally, and the run's first is taken.
    """

    min_agreement: float = 0.7
    """Mean IoU with the other methods, in [0, 1], below which the image is dropped."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not 0 <= self.min_agreement <= 1:
            raise ValueError(f"`min_agreement` must lie in [0, 1], got {self.min_agreement}")

    @property
    def category_bar(self) -> None:
        """See `Choice.category_bar`."""

    def check(self, methods: Sequence[str]) -> None:
        """See `Choice.check`."""
        if len(methods) < 2:
            raise ValueError(f"agreement needs at least two methods, got {', '.join(methods)}")

    def choose(self, batch: Sequence[Candidates]) -> list[Chosen]:
        """See `Choice.choose`."""
        return [self._choose(candidates.labels) for candidates in batch]

    def _choose(self, labels: Mapping[str, NDArray[np.bool_]]) -> Chosen:
        agreements = mean_agreements(labels)
        method = max(agreements, key=agreements.__getitem__)
        agreement = agreements[method]
        reason = None
        if agreement < self.min_agreement:
            reason = f"disagreement: IoU {agreement:.3f} between methods, at least "
            reason += f"{self.min_agreement:g} is required"
        return Chosen(method, agreement, reason)

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return {"rule": "agreement", "min_agreement": self.min_agreement}


def mean_agreements(labels: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Return each method's mean IoU with the others; empty for a method alone."""
    sums = dict.fromkeys(labels, 0.0)
    for first, second in itertools.combinations(labels, 2):
        overlap = intersection_over_union(labels[first], labels[second])
        sums[first] += overlap
        sums[second] += overlap
    return {name: total / (len(labels) - 1) for name, total in sums.items() if len(labels) > 1}
