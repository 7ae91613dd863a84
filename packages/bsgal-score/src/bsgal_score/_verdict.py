"""What can come out of judging a unit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The outcome of judging one unit; the values are those of the decision log."""

    ACCEPT = "accept"
    """The contribution reached the threshold: train on the unit."""
    REJECT = "reject"
    """The contribution stayed below the threshold: do not train on the unit."""
    NO_EVIDENCE = "no_evidence"
    """There was nothing to judge by: train on the unit, but keep it out of every statistic."""
    NONFINITE = "nonfinite"
    """The contribution is NaN or infinite: never train on the unit; count and report it."""


@dataclass(frozen=True)
class Decision:
    """A verdict with the two numbers it was taken from."""

    verdict: Verdict
    threshold: float
    """What the contribution was compared with."""
    contribution: float | None
    """None if there was no evidence."""

    @property
    def trains(self) -> bool:
        """Whether to train on the unit: accepted, or no evidence against it."""
        return self.verdict in (Verdict.ACCEPT, Verdict.NO_EVIDENCE)
