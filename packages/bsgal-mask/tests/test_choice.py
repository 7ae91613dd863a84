from __future__ import annotations

import numpy as np
import pytest

from bsgal_mask import AgreementChoice, FixedChoice


def label(first, last):
    mask = np.zeros((10, 10), bool)
    mask[:, first:last] = True
    return mask


def test_fixed_takes_the_first_method_or_the_named_one():
    labels = {"a": label(0, 4), "b": label(0, 8)}
    assert FixedChoice().choose(labels).method == "a"
    assert FixedChoice(method="b").choose(labels).method == "b"


def test_agreement_is_recorded_whenever_two_methods_ran():
    labels = {"a": label(0, 4), "b": label(0, 8)}
    assert FixedChoice().choose(labels).agreement == 0.5
    assert AgreementChoice(min_agreement=0.5).choose(labels).agreement == 0.5
    assert FixedChoice().choose({"a": label(0, 4)}).agreement is None


def test_agreement_takes_the_method_closest_to_the_others():
    labels = {"odd": label(5, 10), "a": label(0, 4), "b": label(0, 5)}
    chosen = AgreementChoice(min_agreement=0.3).choose(labels)
    assert chosen.method == "a"
    assert chosen.agreement == pytest.approx((0.8 + 0) / 2)


def test_two_methods_agree_equally_and_the_first_is_taken():
    labels = {"b": label(0, 8), "a": label(0, 7)}
    assert AgreementChoice().choose(labels).method == "b"


def test_disagreement_drops_with_both_numbers_and_the_bar_itself_is_kept():
    labels = {"a": label(0, 4), "b": label(0, 8)}
    reason = AgreementChoice(min_agreement=0.7).choose(labels).reason
    assert reason == "disagreement: IoU 0.500 between methods, at least 0.7 is required"
    assert AgreementChoice(min_agreement=0.5).choose(labels).reason is None


def test_two_empty_masks_agree():
    assert AgreementChoice().choose({"a": label(0, 0), "b": label(0, 0)}).agreement == 1


def test_a_rule_that_does_not_fit_the_run_is_refused():
    with pytest.raises(ValueError, match="at least two methods, got border"):
        AgreementChoice().check(["border"])
    with pytest.raises(ValueError, match=r"\(border, u2net\), got 'u2'"):
        FixedChoice(method="u2").check(["border", "u2net"])
    with pytest.raises(ValueError, match="`min_agreement`"):
        AgreementChoice(min_agreement=1.5)
