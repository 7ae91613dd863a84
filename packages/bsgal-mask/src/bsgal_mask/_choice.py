"""Rules that choose one method's mask where several methods segmented an image."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._scores import intersection_over_union


@dataclass(frozen=True, slots=True)
class Chosen:
    """A rule's outcome for one image."""

    method: str
    agreement: float | None
    """Mean IoU of the chosen label mask with those of the other methods; None if it ran alone."""
    reason: str | None = None
    """Why the image is dropped all the same, as `code: detail`; None keeps it."""


class Choice(Protocol):
    """Choose between methods."""

    def check(self, methods: Sequence[str]) -> None:
        """Raise `ValueError` if the rule does not fit the methods of a run."""

    def choose(self, labels: Mapping[str, NDArray[np.bool_]]) -> Chosen:
        """Return the method to take.

        Args:
            labels: The bool label mask (H, W) of each method, in the run's order.
        """

    def config(self) -> Mapping[str, Any]:
        """Return the settings as JSON values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedChoice:
    """Always take the same method; the others only serve to record the agreement."""

    method: str | None = None
    """Name of the method; None takes the run's first."""

    def check(self, methods: Sequence[str]) -> None:
        """See `Choice.check`."""
        if self.method is not None and self.method not in methods:
            raise ValueError(
                f"`method` must be one that the run uses ({', '.join(methods)}), "
                f"got {self.method!r}"
            )

    def choose(self, labels: Mapping[str, NDArray[np.bool_]]) -> Chosen:
        """See `Choice.choose`."""
        method = next(iter(labels)) if self.method is None else self.method
        return Chosen(method, _mean_agreements(labels).get(method))

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

    def check(self, methods: Sequence[str]) -> None:
        """See `Choice.check`."""
        if len(methods) < 2:
            raise ValueError(f"agreement needs at least two methods, got {', '.join(methods)}")

    def choose(self, labels: Mapping[str, NDArray[np.bool_]]) -> Chosen:
        """See `Choice.choose`."""
        agreements = _mean_agreements(labels)
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


def _mean_agreements(labels: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Return each method's mean IoU with the others; empty for a method alone."""
    sums = dict.fromkeys(labels, 0.0)
    for first, second in itertools.combinations(labels, 2):
        overlap = intersection_over_union(labels[first], labels[second])
        sums[first] += overlap
        sums[second] += overlap
    return {name: total / (len(labels) - 1) for name, total in sums.items() if len(labels) > 1}
