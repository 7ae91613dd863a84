from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest

from bsgal_score import (
    Decision,
    FixedThreshold,
    LinearSchedule,
    PerGroup,
    QuantileThreshold,
    ReferenceQuantile,
    Verdict,
    _policies,
)
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


def test_the_quantile_is_numpys_over_the_last_window():
    rng = np.random.default_rng(0)
    policy, seen = QuantileThreshold(0.3, window=50), []
    assert policy.threshold == 0.0
    for contribution in rng.normal(size=200):
        if seen:
            assert policy.threshold == pytest.approx(float(np.quantile(seen[-50:], 0.7)), abs=1e-12)
        policy.decide(contribution)
        seen.append(contribution)


def test_about_the_kept_share_is_accepted():
    rng = np.random.default_rng(1)
    policy = QuantileThreshold(0.8, window=500)
    verdicts = [policy.decide(contribution).verdict for contribution in rng.normal(size=5000)]
    assert verdicts.count(Verdict.ACCEPT) / len(verdicts) == pytest.approx(0.8, abs=0.03)


def test_no_evidence_and_nonfinite_stay_out_of_the_window():
    policy = QuantileThreshold(0.5)
    policy.decide(1.0)
    for contribution in (None, math.nan, math.inf):
        policy.decide(contribution)
    assert policy.state_dict()["recent"] == [1.0]


def test_keeping_all_accepts_all_but_new_minima_and_keeping_none_accepts_new_maxima_only():
    for share, accepted in ((1.0, [True, False, True]), (0.0, [True, False, False])):
        policy = QuantileThreshold(share, initial_threshold=-9.0)
        assert [policy.decide(x).trains for x in (0.5, 0.1, 0.3)] == accepted


def test_the_reference_quantile_follows_real_units_only():
    policy = ReferenceQuantile(0.75, window=8, initial_threshold=-1.0)
    assert policy.threshold == -1.0
    observed = np.random.default_rng(0).normal(size=20).tolist()
    for contribution in (None, math.nan, math.inf, *observed):
        policy.observe([contribution])
    expected = np.quantile(observed[-8:], 0.25)
    assert policy.threshold == pytest.approx(expected)
    for contribution in (-5.0, 5.0, None, math.nan):
        policy.decide(contribution)
    assert policy.threshold == pytest.approx(expected)
    assert policy.decide(policy.threshold).verdict is Verdict.ACCEPT
    assert policy.decide(policy.threshold - 1e-9).verdict is Verdict.REJECT

    resumed = ReferenceQuantile(0.75, window=8, initial_threshold=-1.0)
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    for one in (policy, resumed):
        one.observe([0.1, 0.9])
    assert resumed.threshold == policy.threshold
    with pytest.raises(StateMismatchError, match="window 8"):
        ReferenceQuantile(0.75, window=9, initial_threshold=-1.0).load_state_dict(
            policy.state_dict()
        )


def test_a_schedule_moves_linearly_and_then_stays():
    schedule = LinearSchedule(1.0, 0.5, total_steps=4)
    values = [schedule.value]
    for _ in range(6):
        schedule.step()
        values.append(schedule.value)
    assert values == [1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]


def test_each_group_has_its_own_policy():
    policy = PerGroup({"r": QuantileThreshold(1.0), "f": QuantileThreshold(0.0)})
    for contribution in (1.0, 2.0, 3.0):
        policy.decide(contribution, "f")
    assert policy.decide(0.5, "r").threshold == 0.0
    assert policy.decide(0.5, "f").threshold == 3.0
    with pytest.raises(ValueError, match=r"`group` must be one of \['f', 'r'\], got 'c'"):
        policy.decide(0.5, "c")


@pytest.mark.parametrize("window", [1000, 40, 7])
def test_the_order_of_the_units_of_a_step_changes_neither_verdicts_nor_state(window):
    rng = np.random.default_rng(3)

    def make():
        groups = {"r": QuantileThreshold(0.5, window), "f": ReferenceQuantile(0.5, window)}
        return PerGroup({**groups, "c": FixedThreshold(0.0)})

    one, other = make(), make()
    for _ in range(5):
        units = [*rng.normal(size=30).tolist(), None, math.nan, math.inf]
        groups = rng.choice(["r", "c", "f"], size=len(units)).tolist()
        order = rng.permutation(len(units))
        decisions = one.decide_many(units, groups)
        shuffled = other.decide_many([units[i] for i in order], [groups[i] for i in order])
        assert repr([decisions[i] for i in order]) == repr(shuffled)
        one.policies["f"].observe(units)
        other.policies["f"].observe([units[i] for i in order])
        assert one.state_dict() == other.state_dict()


def test_a_window_smaller_than_a_step_keeps_an_even_share_of_it():
    policy = QuantileThreshold(0.5, window=100)
    policy.decide_many(np.random.default_rng(4).permutation(1000).tolist())
    kept = policy.state_dict()["recent"]
    assert np.quantile(kept, [0.1, 0.5, 0.9]) == pytest.approx([100, 500, 900], abs=15)


def test_a_group_that_is_missing_is_named_before_anything_is_decided():
    policy = PerGroup({"r": QuantileThreshold(1.0)})
    with pytest.raises(ValueError, match="got 'c'"):
        policy.decide_many([1.0, 2.0], ["r", "c"])
    with pytest.raises(ValueError, match="one group per contribution, got 1 for 2"):
        policy.decide_many([1.0, 2.0], ["r"])
    assert policy.state_dict()["r"]["recent"] == []


def test_stop_and_resume_decides_bit_for_bit():
    def make():
        share = LinearSchedule(0.9, 0.3, total_steps=150)
        return PerGroup({"r": QuantileThreshold(share, window=30), "f": FixedThreshold(0.1)})

    contributions = np.random.default_rng(2).normal(size=200).tolist()
    whole, part = make(), make()
    for contribution in contributions[:100]:
        for policy in (whole, part):
            policy.decide(contribution, "r")
            policy.step()
    resumed = make()
    resumed.load_state_dict(json.loads(json.dumps(part.state_dict())))
    for contribution in contributions[100:]:
        assert whole.decide(contribution, "r") == resumed.decide(contribution, "r")
        whole.step()
        resumed.step()


@pytest.mark.parametrize(
    ("saved", "other", "message"),
    [
        (QuantileThreshold(0.5), QuantileThreshold(0.6), "has kept_share 0.5"),
        (QuantileThreshold(0.5), QuantileThreshold(0.5, window=9), "has window 1000"),
        (
            QuantileThreshold(LinearSchedule(1, 0, 5)),
            QuantileThreshold(LinearSchedule(1, 0, 6)),
            "has total_steps 5",
        ),
        (QuantileThreshold(0.5), QuantileThreshold(LinearSchedule(1, 0, 6)), "kept_share 0.5"),
        (PerGroup({"r": FixedThreshold(0)}), PerGroup({"f": FixedThreshold(0)}), "groups"),
    ],
)
def test_a_state_of_other_settings_is_refused(saved, other, message):
    with pytest.raises(StateMismatchError, match=message):
        other.load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantileThreshold(1.5), r"`kept_share` must lie in \[0, 1\], got 1.5"),
        (lambda: QuantileThreshold(LinearSchedule(1, -1, 5)), r"got 1.0 to -1.0"),
        (lambda: QuantileThreshold(0.5, window=0), "`window` must be at least 1"),
        (lambda: QuantileThreshold(0.5, initial_threshold=math.nan), "`initial_threshold`"),
        (lambda: ReferenceQuantile(-0.1), r"`kept_share` must lie in \[0, 1\], got -0.1"),
        (lambda: ReferenceQuantile(window=0), "`window` must be at least 1"),
        (lambda: ReferenceQuantile(initial_threshold=math.inf), "`initial_threshold`"),
        (lambda: LinearSchedule(1, 0, 0), "`total_steps` must be at least 1"),
        (lambda: PerGroup({}), "at least one group"),
        (lambda: PerGroup(dict.fromkeys("rc", FixedThreshold(0))), "distinct objects"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_docstring_examples_run():
    assert doctest.testmod(_policies).attempted > 0
    assert doctest.testmod(_policies).failed == 0
