from __future__ import annotations

import pytest
import torch

from bsgal_train.detector.federated import FederatedClasses


def test_present_classes_always_take_part_and_background_never() -> None:
    federated = FederatedClasses([5] * 10, n_classes=4)

    for seed in range(20):
        torch.manual_seed(seed)
        drawn = federated.draw(torch.tensor([7, 10, 2, 7])).tolist()
        assert {2, 7} <= set(drawn) <= set(range(10))
        assert len(drawn) == len(set(drawn)) == 4


def test_all_present_classes_take_part_even_beyond_the_number() -> None:
    drawn = FederatedClasses([1] * 5, n_classes=2).draw(torch.tensor([0, 1, 3, 4, 5]))

    assert drawn.tolist() == [0, 1, 3, 4]


def test_classes_are_drawn_by_the_root_of_their_image_count() -> None:
    # Roots 1, 2 and 3: the class drawn beside the present one is class i in i / 6 of the batches.
    federated = FederatedClasses([50, 1, 4, 9], n_classes=2)
    torch.manual_seed(0)
    n_batches = 4000

    counts = torch.zeros(4)
    for _ in range(n_batches):
        counts[federated.draw(torch.tensor([0, 4]))] += 1

    assert counts[0] == n_batches
    expected = torch.tensor([1 / 6, 2 / 6, 3 / 6])
    # Four standard deviations of a share of 1/2.
    torch.testing.assert_close(
        counts[1:] / n_batches, expected, rtol=0, atol=4 * (0.25 / n_batches) ** 0.5
    )


def test_classes_without_an_image_are_not_drawn() -> None:
    drawn = FederatedClasses([0, 3, 0, 2], n_classes=4).draw(torch.tensor([4]))

    assert drawn.tolist() == [1, 3]


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`n_classes` must be at least 1, got 0"):
        FederatedClasses([1], n_classes=0)
