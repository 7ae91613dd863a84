from __future__ import annotations

import doctest
import json
import math
import random

import numpy as np
import pytest

from bsgal_score import LinearSchedule, PerGroup, SmallLoss, Verdict, _small_loss
from bsgal_score.errors import StateMismatchError


def kept(policy, losses):
    return [decision.trains for decision in policy.decide_many(losses)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_the_units_below_the_quantile_of_the_step_are_kept(share):
    losses = np.random.default_rng(0).exponential(size=64)
    assert (
        kept(SmallLoss(share), losses.tolist()) == (losses <= np.quantile(losses, share)).tolist()
    )


def test_decisions_do_not_depend_on_the_order_of_the_units():
    one, other = SmallLoss(0.5, window=7), SmallLoss(0.5, window=7)
    rng = random.Random(0)
    for _ in range(5):
        losses = [rng.expovariate(1.0) for _ in range(6)]
        order = rng.sample(range(6), 6)
        shuffled = kept(other, [losses[i] for i in order])
        assert [kept_ for _, kept_ in sorted(zip(order, shuffled, strict=True))] == kept(
            one, losses
        )
    assert one.state_dict() == other.state_dict()


def test_a_window_gives_steps_of_one_unit_something_to_compare_with():
    policy = SmallLoss(0.5, window=4)
    policy.decide_many([1.0, 1.0, 1.0, 1.0])
    assert policy.decide(3.0).verdict is Verdict.REJECT
    assert policy.decide(0.5).verdict is Verdict.ACCEPT
    assert SmallLoss(0.5).decide(3.0).verdict is Verdict.ACCEPT


def test_what_is_no_number_counts_nowhere():
    decisions = SmallLoss(0.5).decide_many([math.nan, 1.0, None, 2.0, math.inf])
    assert [one.verdict for one in decisions] == [
        Verdict.NONFINITE, Verdict.ACCEPT, Verdict.NO_EVIDENCE, Verdict.REJECT, Verdict.NONFINITE,
    ]  # fmt: skip
    assert (decisions[1].contribution, decisions[1].threshold) == (-1.0, -1.5)


def test_a_step_without_units_is_no_matter():
    assert SmallLoss(0.5).decide_many([]) == []


def test_a_schedule_lets_the_model_learn_first():
    policy = SmallLoss(LinearSchedule(1.0, 0.5, total_steps=2))
    assert kept(policy, [1.0, 2.0]) == [True, True]
    policy.step()
    policy.step()
    assert kept(policy, [1.0, 2.0]) == [True, False]


def test_a_resumed_policy_decides_like_one_that_went_on():
    policies = [SmallLoss(LinearSchedule(1.0, 0.2, 3), window=5) for _ in range(2)]
    policies[0].decide_many([1.0, 5.0, 2.0])
    policies[0].step()
    policies[1].load_state_dict(json.loads(json.dumps(policies[0].state_dict())))
    for losses in ([3.0, 4.0], [0.1, 9.0, 2.0]):
        assert policies[0].decide_many(losses) == policies[1].decide_many(losses)


@pytest.mark.parametrize("other", [SmallLoss(0.5), SmallLoss(0.4, window=2)])
def test_a_state_of_other_settings_is_refused(other):
    with pytest.raises(StateMismatchError, match="saved"):
        SmallLoss(0.5, window=2).load_state_dict(other.state_dict())


@pytest.mark.parametrize("share", [-0.1, 1.1, LinearSchedule(1.0, -0.5, 3)])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="`kept_share` must lie in"):
        SmallLoss(share)
    with pytest.raises(ValueError, match="`window` must be at least 0"):
        SmallLoss(0.5, window=-1)


def test_it_serves_a_group():
    policy = PerGroup({"r": SmallLoss(0.5, window=3)})
    assert policy.decide(1.0, "r").trains


def test_the_example_runs():
    assert doctest.testmod(_small_loss).attempted > 0
    assert doctest.testmod(_small_loss).failed == 0
