"""Policies that turn a contribution into a verdict."""

from __future__ import annotations

import math
from typing import Any

from ._verdict import Decision, Verdict
from .errors import StateMismatchError


def judge(contribution: float | None, threshold: float) -> Decision:
    """Compare a contribution with a threshold: ties accept, NaN and Inf are never accepted."""
    if contribution is None:
        verdict = Verdict.NO_EVIDENCE
    elif not math.isfinite(contribution):
        verdict = Verdict.NONFINITE
    else:
        verdict = Verdict.ACCEPT if contribution >= threshold else Verdict.REJECT
    return Decision(verdict, threshold, contribution)


class FixedThreshold:
    """Accept a unit if its contribution is at least `threshold`.

    Args:
        threshold: Finite number; slightly negative drops clearly harmful units only.

    Example:
        >>> FixedThreshold(-0.05).decide(-0.05).verdict.value
        'accept'
        >>> FixedThreshold(-0.05).decide(None).verdict.value
        'no_evidence'
    """

    def __init__(self, threshold: float) -> None:
        if not math.isfinite(threshold):
            raise ValueError(f"`threshold` must be finite, got {threshold}")
        self.threshold = float(threshold)

    def decide(self, contribution: float | None) -> Decision:
        """Judge one unit; None means that there is no evidence."""
        return judge(contribution, self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` checks: this policy learns nothing."""
        return {"threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a saved state came from the same threshold.

        Raises:
            StateMismatchError: If it did not.
        """
        if state.get("threshold") != self.threshold:
            raise StateMismatchError(
                f"the saved state has threshold {state.get('threshold')}, this policy has "
                f"{self.threshold}; make the policy with the saved threshold"
            )
