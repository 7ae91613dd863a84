from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsgal_train.data import DrawPolicy, weights_from_evidence

POLICY = DrawPolicy(min_looks=2, uncertain_weight=3.0, revisit_share=0.1)


def weights(rows: list[tuple[int, str, int]], policy: DrawPolicy = POLICY) -> np.ndarray:
    looks, verdicts, categories = zip(*rows, strict=True)
    return policy.weights(np.array(looks), np.array(verdicts), np.array(categories))


def test_each_verdict_has_its_weight():
    rows = [
        (5, "accept", 1), (0, "uncertain", 1), (1, "uncertain", 1), (2, "uncertain", 1),
        (4, "reject", 1),
    ]  # fmt: skip
    np.testing.assert_allclose(weights(rows), [1, 3, 3, 1, 0.1 / 4], rtol=1e-6)
    assert weights(rows).dtype == np.float32


def test_a_rejected_instance_comes_ever_more_rarely():
    given_looks = [weights([(n, "reject", 7), (2, "accept", 7)])[0] for n in range(1, 50)]
    assert np.all(np.diff(given_looks) < 0)
    assert given_looks[-1] > 0
    never = DrawPolicy(revisit_share=0)
    assert weights([(1, "reject", 7), (2, "accept", 7)], never).tolist() == [0, 1]


def test_many_rejected_instances_do_not_crowd_out_the_good_ones():
    found = weights([(2, "reject", 1)] * 999 + [(2, "accept", 1)])
    assert found[:-1].sum() / found[-1] == pytest.approx(0.1, rel=1e-4)


def test_a_category_of_rejected_instances_is_not_drawn_and_no_other_suffers():
    found = weights([(2, "reject", 1), (3, "reject", 1), (2, "reject", 2), (2, "accept", 2)])
    np.testing.assert_allclose(found, [0, 0, 0.05, 1], rtol=1e-6)


verdict_rows = st.lists(
    st.tuples(
        st.integers(1, 9), st.sampled_from(["accept", "reject", "uncertain"]), st.integers(1, 4)
    ),
    min_size=1,
    max_size=30,
)


@given(verdict_rows, st.randoms(use_true_random=False))
def test_weights_follow_their_instance_whatever_the_order(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    found = weights(rows)
    np.testing.assert_allclose(weights([rows[i] for i in order]), found[order], rtol=1e-6)
    share = np.array([verdict == "reject" for _, verdict, _ in rows])
    categories = np.array([category for *_, category in rows])
    for category in set(categories.tolist()):
        own = categories == category
        assert found[own & share].sum() <= 0.1 * found[own & ~share].sum() * (1 + 1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_looks": -1}, "`min_looks` must be at least 0"),
        ({"uncertain_weight": 0.0}, "finite and positive"),
        ({"uncertain_weight": np.nan}, "finite and positive"),
        ({"revisit_share": 1.5}, r"in \[0, 1\]"),
        ({"revisit_share": np.nan}, r"in \[0, 1\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DrawPolicy(**settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1, "maybe", 1), r"one of \('accept', 'reject', 'uncertain'\), got 'maybe'"),
        ((-1, "accept", 1), "`looks` must be at least 0"),
        ((0, "reject", 1), "at least 1 for what is rejected"),
    ],
)
def test_evidence_that_cannot_be_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        weights([row])
    with pytest.raises(ValueError, match=r"one shape \(n,\), got \(2,\), \(1,\), \(1,\)"):
        POLICY.weights(np.array([1, 2]), np.array(["accept"]), np.array([1]))


def test_evidence_by_id_finds_its_positions(pool):
    """The pool's instances are a of category 3, b and c of 42."""
    ids, looks, verdicts = ["c", "elsewhere", "b"], np.array([4, 1, 2]), ["reject", "reject"]
    found = weights_from_evidence(pool, ids, looks, np.array([*verdicts, "accept"]), POLICY)
    assert [pool.instance_id(p) for p in range(3)] == ["a", "b", "c"]
    np.testing.assert_allclose(found, [3, 1, 0.025], rtol=1e-6)


def test_evidence_of_another_pool_is_refused(pool):
    looks, verdicts = np.array([1, 1]), np.array(["accept", "accept"])
    with pytest.raises(ValueError, match=r"first 'x', none of which is in the pool, first 'a'"):
        weights_from_evidence(pool, ["x", "y"], looks, verdicts, POLICY)
    with pytest.raises(ValueError, match="2 ids of 1 instances"):
        weights_from_evidence(pool, ["a", "a"], looks, verdicts, POLICY)
    with pytest.raises(ValueError, match="1 ids of 1 instances, 2 looks"):
        weights_from_evidence(pool, ["a"], looks, verdicts, POLICY)
