"""When a score is a contribution: one rule for full gradients and for units."""

from __future__ import annotations

import math


def contribution(
    score: float, *, dot: float, cache_sqnorm: float, candidate_sqnorm: float
) -> float | None:
    """Return the score; NaN if it or a sum is not finite, None if there is no evidence for it.

    There is none where one of the two sides is zero: the score, even if it is a number, then says
    nothing about the candidate.

    Args:
        score: What a policy is to decide on; may be undefined where a side is zero.
        dot: ⟨c, k⟩, plain or in the optimizer's metric.
        cache_sqnorm: ⟨c, c⟩ likewise.
        candidate_sqnorm: ⟨k, k⟩ likewise.
    """
    if not all(map(math.isfinite, (dot, cache_sqnorm, candidate_sqnorm))):
        return math.nan
    if cache_sqnorm == 0 or candidate_sqnorm == 0:
        return None
    return score if math.isfinite(score) else math.nan


def cosine(*, dot: float, cache_sqnorm: float, candidate_sqnorm: float) -> float:
    """Return ⟨c, k⟩ / (‖c‖‖k‖) in [-1, 1]; NaN if a side is zero or a sum is not finite."""
    norms = math.sqrt(cache_sqnorm) * math.sqrt(candidate_sqnorm)
    if not math.isfinite(dot) or not math.isfinite(norms) or norms == 0:
        return math.nan
    # Rounding can carry the quotient past 1 by a few units in the last place.
    return max(-1.0, min(1.0, dot / norms))
