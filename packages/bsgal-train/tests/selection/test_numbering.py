from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bsgal_train.data import TrainingSample
from bsgal_train.data.samples import REAL
from bsgal_train.detector.row_losses import BACKGROUND, Rows
from bsgal_train.recipe.modes import Granularity
from bsgal_train.selection.numbering import Units


@pytest.fixture(name="three")
def three_samples(samples: list[TrainingSample]) -> list[TrainingSample]:
    """Return samples of two, no and one pasted objects."""
    pasted = [paste for sample in samples for paste in sample.pastes]
    return [
        replace(samples[0], position=position, pastes=tuple(pastes))
        for position, pastes in enumerate((pasted[:2], (), pasted[2:3]))
    ]


@pytest.mark.parametrize(
    ("granularity", "of_pastes", "n", "of_rows"),
    [
        ("instance", [[0, 1], [], [2]], 3, [1, -1, -1, 2]),
        ("image", [[0, 0], [], [2]], 3, [0, -1, -1, 2]),
        ("batch", [[0, 0], [], [0]], 1, [0, -1, -1, 0]),
    ],
)
def test_objects_and_their_rows_have_the_same_unit(
    granularity: Granularity,
    of_pastes: list[list[int]],
    n: int,
    of_rows: list[int],
    three: list[TrainingSample],
) -> None:
    units = Units(three, granularity)

    rows = Rows(
        source=torch.tensor([1, REAL, BACKGROUND, 0]),
        image=torch.tensor([0, 0, 1, 2]),
        boxes_xyxy=torch.zeros(4, 4),
        object=torch.zeros(4, dtype=torch.int64),
    )
    assert units.of_pastes == of_pastes
    assert len(units) == n
    assert units.of_rows(rows).tolist() == of_rows


def test_groups_are_those_of_the_objects(three: list[TrainingSample]) -> None:
    own = [tuple(paste.frequency for paste in sample.pastes) for sample in three]

    assert Units(three, "image").groups == own
    assert Units(three, "instance").groups == [(group,) for groups in own for group in groups]
    assert Units(three, "batch").groups == [sum(own, ())]


def test_all_objects_of_a_rejected_unit_are_left_out(three: list[TrainingSample]) -> None:
    assert Units(three, "instance").rejected([True, False, False]) == [{1}, set(), {0}]
    assert Units(three, "image").rejected([False, False, True]) == [{0, 1}, set(), set()]
    assert Units(three, "batch").rejected([False]) == [{0, 1}, set(), {0}]
