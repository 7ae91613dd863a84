from __future__ import annotations

import math
from typing import get_args

import pytest

from bsgal_train.inspect.report.evidence_words import against
from bsgal_train.recipe.modes import EvidenceSource


def test_what_is_worse_than_most_real_objects_is_said_the_worst_first() -> None:
    evidence: dict[EvidenceSource, float] = {"prototype": 1.5, "outline": 2.4, "cls_loss": 0.2}

    assert against(evidence, "onion") == [
        "its mask's outline fits worse than 99.1 % of real objects'",
        "looks less like an onion than 93 % of real ones",
    ]


def test_where_little_speaks_against_it_the_worst_is_said() -> None:
    assert against({"prototype": -0.5, "outline": 0.0}, "kite") == [
        "its mask's outline fits worse than 50 % of real objects'"
    ]


def test_a_source_without_a_look_is_left_out() -> None:
    assert against({"prototype": math.nan, "outline": math.nan}, "kite") == []


def test_nothing_is_worse_than_all_real_objects() -> None:
    (words,) = against({"outline": 40.0}, "kite")
    assert words == "its mask's outline fits worse than 99.9 % of real objects'"


@pytest.mark.parametrize("source", get_args(EvidenceSource))
def test_every_source_has_words(source: EvidenceSource) -> None:
    (words,) = against({source: 2.0}, "kite")
    assert "97 %" in words
