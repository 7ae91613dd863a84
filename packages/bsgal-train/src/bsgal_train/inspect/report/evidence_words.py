"""What evidence says against an instance, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

from bsgal_train.recipe.modes import EvidenceSource

__all__ = ["against"]

_SAID: Mapping[EvidenceSource, str] = {
    "prototype": "looks less like {a_category} than {share} of real ones",
    "real_prototype": "looks less like real objects of its category than {share} of these do",
    "cls_loss": "is taken for {a_category} less readily than {share} of real ones",
    "box_loss": "its box fits worse than {share} of real objects'",
    "mask_loss": "its mask fits worse than {share} of real objects'",
    "outline": "its mask's outline fits worse than {share} of real objects'",
}

_SPEAKS_AGAINST = NormalDist().inv_cdf(0.9)


def against(evidence: Mapping[EvidenceSource, float], category: str) -> list[str]:
    """Say what speaks against an instance, the worst first.

    Args:
        evidence: by source, in standard deviations worse than the class's real objects, as
            `bsgal_score.EvidenceTable` has it; NaN is no look of this source.
        category: what the instance should be, as a reader would say it.

    Returns:
        What is worse than 90 % of real objects; where nothing is, the worst alone.
    """
    worst_first = sorted(
        (name for name, value in evidence.items() if not math.isnan(value)),
        key=lambda name: -evidence[name],
    )
    a_category = f"{'an' if category[:1].lower() in set('aeiou') else 'a'} {category}"
    return [
        _SAID[name].format(a_category=a_category, share=_share_below(evidence[name]))
        for name in worst_first
        if evidence[name] >= _SPEAKS_AGAINST or name == worst_first[0]
    ]


def _share_below(value: float) -> str:
    """Return the share of a normal distribution that is below, never rounded up to all of it."""
    permille = min(999, math.floor(1000 * NormalDist().cdf(value)))
    return f"{permille / 10:.1f} %" if permille >= 990 else f"{permille // 10} %"
