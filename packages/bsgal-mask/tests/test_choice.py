from __future__ import annotations

import numpy as np
import pytest

from bsgal_mask import AgreementChoice, Candidates, CategoryBar, FixedChoice

IMAGE = np.zeros((10, 10, 3), np.uint8)


def label(first, last):
    mask = np.zeros((10, 10), bool)
    mask[:, first:last] = True
    return mask


def choose(rule, labels):
    candidates = Candidates(image=IMAGE, category_name="cup", labels=labels)
    first, second = rule.choose([candidates, candidates])
    assert first == second
    return first


def test_fixed_takes_the_first_method_or_the_named_one():
    labels = {"a": label(0, 4), "b": label(0, 8)}
    assert choose(FixedChoice(), labels).method == "a"
    assert choose(FixedChoice(method="b"), labels).method == "b"


def test_agreement_is_recorded_whenever_two_methods_ran():
    labels = {"a": label(0, 4), "b": label(0, 8)}
    assert choose(FixedChoice(), labels).agreement == 0.5
    assert choose(AgreementChoice(min_agreement=0.5), labels).agreement == 0.5
    assert choose(FixedChoice(), {"a": label(0, 4)}).agreement is None


def test_agreement_takes_the_method_closest_to_the_others():
    labels = {"odd": label(5, 10), "a": label(0, 4), "b": label(0, 5)}
    chosen = choose(AgreementChoice(min_agreement=0.3), labels)
    assert chosen.method == "a"
    assert chosen.agreement == pytest.approx((0.8 + 0) / 2)


def test_two_methods_agree_equally_and_the_first_is_taken():
    labels = {"b": label(0, 8), "a": label(0, 7)}
    assert choose(AgreementChoice(), labels).method == "b"


def test_disagreement_drops_with_both_numbers_and_the_bar_itself_is_kept():
    labels = {"a": label(0, 4), "b": label(0, 8)}
    reason = choose(AgreementChoice(min_agreement=0.7), labels).reason
    assert reason == "disagreement: IoU 0.500 between methods, at least 0.7 is required"
    assert choose(AgreementChoice(min_agreement=0.5), labels).reason is None


def test_two_empty_masks_agree():
    assert choose(AgreementChoice(), {"a": label(0, 0), "b": label(0, 0)}).agreement == 1


def test_a_rule_that_does_not_fit_the_run_is_refused():
    with pytest.raises(ValueError, match="at least two methods, got border"):
        AgreementChoice().check(["border"])
    with pytest.raises(ValueError, match=r"\(border, u2net\), got 'u2'"):
        FixedChoice(method="u2").check(["border", "u2net"])
    with pytest.raises(ValueError, match="`min_agreement`"):
        AgreementChoice(min_agreement=1.5)


def test_a_category_that_never_reaches_the_bar_has_a_lower_one():
    bar = CategoryBar(min_score=0.21, tolerance=0.01)
    assert bar.of_category(0.30) == 0.21
    assert bar.of_category(0.215) == pytest.approx(0.205)
    assert bar.of_category(0.10) == pytest.approx(0.09)


@pytest.mark.parametrize(("setting", "value"), [("min_score", 21), ("tolerance", -0.1)])
def test_an_impossible_bar_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        CategoryBar(**{setting: value})
