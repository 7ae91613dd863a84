from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bsgal_train.data.look_plan import LookPlan

IMAGES = [np.array([4]), np.zeros(0, dtype=np.int64), np.array([0, 1, 2, 3])]


def test_every_instance_is_pasted_once_in_each_round() -> None:
    plan = LookPlan(7, 3, 2, IMAGES, seed=0)

    assert len(plan) == 3 * 4
    rounds = [
        [one for place in range(4) for one in plan.instances(4 * number + place)]
        for number in range(3)
    ]
    for of_round in rounds:
        assert sorted(of_round) == list(range(7))
    assert rounds[0] != rounds[1]


def test_images_take_turns_between_the_classes_that_have_some() -> None:
    plan = LookPlan(100, 1, 1, IMAGES, seed=0)

    found = Counter(plan.image_index(position) for position in range(100))
    # The one image of the first class comes as often as the four of the last one together.
    assert found[4] == 50
    assert set(found) == {0, 1, 2, 3, 4}


def test_a_position_gives_the_same_in_any_order_and_another_with_another_seed() -> None:
    places = list(range(30))
    forwards, backwards, other = (LookPlan(30, 2, 2, IMAGES, seed=seed) for seed in (1, 1, 2))
    found = [(forwards.instances(p), forwards.image_index(p)) for p in places]
    again = [(backwards.instances(p), backwards.image_index(p)) for p in reversed(places)]

    assert found == again[::-1]
    assert found != [(other.instances(p), other.image_index(p)) for p in places]


def test_at_first_every_class_is_visited_and_nothing_pasted() -> None:
    plan = LookPlan(3, 1, 2, IMAGES, n_visits=2, seed=0)

    assert len(plan) == 2 * 2 + 2
    assert [len(plan.instances(position)) for position in range(6)] == [0, 0, 0, 0, 2, 1]
    assert Counter(plan.image_index(position) == 4 for position in range(4)) == {True: 2, False: 2}


@pytest.mark.parametrize("position", [-1, 4])
def test_a_position_outside_is_refused(position: int) -> None:
    with pytest.raises(IndexError, match="positions 0 to 3"):
        LookPlan(4, 1, 1, IMAGES, seed=0).instances(position)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1, IMAGES), "`n_instances` must be at least 1, got 0"),
        ((1, 0, 1, IMAGES), "`n_looks` must be at least 1, got 0"),
        ((1, 1, 0, IMAGES), "`per_image` must be at least 1, got 0"),
        ((1, 1, 1, IMAGES[1:2]), "a class that some image holds"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: tuple[int, int, int, list[np.ndarray]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LookPlan(*arguments, seed=0)
