from __future__ import annotations

import pytest
import torch
from torch import nn

from bsgal_train.engine.weight_average import WeightAverage


def layer() -> nn.Linear:
    made = nn.Linear(3, 2)
    made.register_buffer("scale", torch.ones(2))
    made.register_buffer("count", torch.tensor(5))
    return made


def test_it_is_the_closed_form_of_the_weights_it_saw() -> None:
    torch.manual_seed(0)
    detector = layer()
    seen = [detector.weight.detach().clone()]
    average = WeightAverage(detector, decay=0.9)
    for _ in range(4):
        detector.weight.data.normal_()
        seen.append(detector.weight.detach().clone())
        average.update()

    # a_n = d^n w_0 + (1 - d) sum_k d^(n - k) w_k, in which w_0 are the weights it was made with.
    expected = 0.9**4 * seen[0] + 0.1 * sum(0.9 ** (4 - k) * seen[k] for k in range(1, 5))
    torch.testing.assert_close(average.state_dict()["weight"], expected)


def test_the_detector_has_it_inside_the_block_only() -> None:
    detector = layer()
    average = WeightAverage(detector, decay=0.5)
    before = detector.weight.detach().clone()
    detector.weight.data += 2.0

    with average.in_place():
        torch.testing.assert_close(detector.weight.data, before)
    torch.testing.assert_close(detector.weight.data, before + 2.0)


def test_buffers_with_a_fraction_are_followed_and_counts_are_not() -> None:
    average = WeightAverage(layer(), decay=0.5)

    assert set(average.state_dict()) == {"weight", "bias", "scale"}


def test_state_of_another_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="of another detector"):
        WeightAverage(layer(), 0.5).load_state_dict({"weight": torch.zeros(1)})


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        WeightAverage(layer(), 1)
