from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bsgal_train.evaluation import evaluate, evaluate_lvis, matching, overlaps
from bsgal_train.evaluation.matching import IGNORED, TRUE, UNMATCHED, match
from bsgal_train.evaluation.overlaps import Candidates
from bsgal_train.evaluation.run_lengths import run_bounds

ALL, SMALL, MEDIUM = 0, 1, 2
SMALL_AREA, MEDIUM_AREA = 20.0**2, 50.0**2


def outcomes(
    *pairs: tuple[int, int, float], areas: list[float], same_image: bool = True
) -> np.ndarray:
    """Match pairs (prediction, object, IoU)."""
    prediction, item, iou = (np.array(column) for column in zip(*pairs, strict=True))
    candidates = Candidates(prediction=prediction, object=item, iou=iou)
    pair = np.zeros(len(areas), int) if same_image else np.arange(len(areas))
    return match(candidates, pair, np.array(areas)).outcome


def test_prediction_takes_the_object_it_overlaps_most() -> None:
    # The second one is left the first object, which it overlaps by enough up to 0.55.
    found = outcomes((0, 0, 0.6), (0, 1, 0.8), (1, 0, 0.55), areas=[MEDIUM_AREA] * 2)
    assert found[0, :, ALL].tolist() == [TRUE] * 7 + [UNMATCHED] * 3
    assert found[1, :, ALL].tolist() == [TRUE] * 2 + [UNMATCHED] * 8


def test_an_object_is_taken_once_and_by_the_earlier() -> None:
    found = outcomes((0, 0, 0.6), (1, 0, 0.9), areas=[MEDIUM_AREA])
    # At 0.65 and above the first one takes nothing.
    assert found[0, :, ALL].tolist() == [TRUE] * 3 + [UNMATCHED] * 7
    assert found[1, :, ALL].tolist() == [UNMATCHED] * 3 + [TRUE] * 6 + [UNMATCHED]


def test_of_equal_overlaps_the_later_object_is_taken() -> None:
    found = outcomes((0, 0, 0.7), (0, 1, 0.7), (1, 1, 0.7), areas=[MEDIUM_AREA] * 2)
    assert found[1, 0, ALL] == UNMATCHED


def test_an_object_of_another_size_is_taken_if_no_other_is_left() -> None:
    found = outcomes(
        (0, 0, 0.6), (0, 1, 0.9), (1, 0, 0.6), (1, 1, 0.9), areas=[SMALL_AREA, MEDIUM_AREA]
    )
    assert found[:, 0, SMALL].tolist() == [TRUE, IGNORED]
    assert found[:, 0, MEDIUM].tolist() == [TRUE, IGNORED]
    assert found[:, 0, ALL].tolist() == [TRUE, TRUE]


def test_images_do_not_wait_for_each_other() -> None:
    found = outcomes((0, 0, 0.9), (1, 1, 0.9), areas=[MEDIUM_AREA] * 2, same_image=False)
    assert (found[:, 0, ALL] == TRUE).all()


@pytest.mark.parametrize("seed", range(3))
def test_sizes_of_blocks_change_nothing(
    seed: int, make_crowd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    document, predictions = make_crowd(seed)
    expected = evaluate_lvis(document, predictions)
    monkeypatch.setattr(evaluate, "_ROWS_TOGETHER", 1)
    monkeypatch.setattr(overlaps, "_PAIRS_IN_MEMORY", 7)
    monkeypatch.setattr(matching, "_TURNS_TOGETHER", 2)
    assert evaluate_lvis(document, predictions) == expected


def test_runs_of_equal_values() -> None:
    assert run_bounds(np.array([3, 3, -1, 3])).tolist() == [0, 2, 3, 4]
    assert run_bounds(np.zeros(0)).tolist() == [0]
