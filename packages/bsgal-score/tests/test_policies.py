from __future__ import annotations

import math

import pytest

from bsgal_score import Decision, FixedThreshold, Verdict
from bsgal_score.errors import StateMismatchError


@pytest.mark.parametrize(
    ("contribution", "verdict", "trains"),
    [
        (0.2, Verdict.ACCEPT, True),
        (-0.05, Verdict.ACCEPT, True),
        (math.nextafter(-0.05, -1), Verdict.REJECT, False),
        (None, Verdict.NO_EVIDENCE, True),
        (math.nan, Verdict.NONFINITE, False),
        (math.inf, Verdict.NONFINITE, False),
        (-math.inf, Verdict.NONFINITE, False),
    ],
)
def test_a_contribution_has_one_outcome_and_ties_accept(contribution, verdict, trains):
    decision = FixedThreshold(-0.05).decide(contribution)
    assert decision.verdict is verdict
    assert decision.trains is trains


def test_a_decision_records_what_it_was_taken_from():
    assert FixedThreshold(0.1).decide(0.3) == Decision(Verdict.ACCEPT, 0.1, 0.3)


def test_verdicts_are_the_words_of_the_decision_log():
    assert [verdict.value for verdict in Verdict] == [
        "accept", "reject", "no_evidence", "nonfinite",
    ]  # fmt: skip


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_threshold_must_be_finite(threshold):
    with pytest.raises(ValueError, match="`threshold` must be finite"):
        FixedThreshold(threshold)


def test_a_state_belongs_to_one_threshold():
    FixedThreshold(0.1).load_state_dict(FixedThreshold(0.1).state_dict())
    with pytest.raises(StateMismatchError, match=r"saved state has threshold 0\.1"):
        FixedThreshold(0.2).load_state_dict(FixedThreshold(0.1).state_dict())
