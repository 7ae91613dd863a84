"""A few units' gradients can be held against autograd's, whatever the model is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bsgal_score import REFERENCE, GhostScorer, GradientCache
from bsgal_score.errors import WrongUnitError

INDEX = torch.tensor([REFERENCE, 0, 0, 1])


def scored(model, rows, index=INDEX, dtype=torch.float64, **options):
    """Return a scorer in its block, and the loss of every row."""
    torch.manual_seed(0)
    model.to(dtype)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    scorer = GhostScorer(model, cache).__enter__()
    losses = model(rows.to(dtype)).square().flatten(1).sum(dim=1) / len(rows)
    scorer.score(losses.sum() * options.get("loss_scale", 1.0), index, **options)
    return scorer, losses * options.get("loss_scale", 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_right_units_pass(dtype, loss_scale):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    scorer, losses = scored(model, torch.randn(4, 2, 4, 4), dtype=dtype, loss_scale=loss_scale)
    scorer.verify({0: losses[1:3].sum(), 1: losses[3]})


def test_rows_that_influence_one_another_are_named():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0)

    model = nn.Sequential(nn.Linear(5, 4), Centred(), nn.Linear(4, 3))
    scorer, losses = scored(model, torch.randn(4, 5))
    with pytest.raises(WrongUnitError, match=r"unit 1 has a gradient of norm .* on '0\.\w+'"):
        scorer.verify({1: losses[3]})


def test_rows_in_another_order_are_named():
    class Shuffled(nn.Module):
        def forward(self, x):
            return x.flip(0)

    model = nn.Sequential(nn.Linear(5, 4), Shuffled(), nn.Linear(4, 3))
    scorer, losses = scored(model, torch.randn(4, 5))
    with pytest.raises(WrongUnitError, match=r"on '0\.(weight|bias)' by its rows"):
        scorer.verify({1: losses[3]})


def test_a_loss_that_is_not_the_units_is_noticed():
    scorer, losses = scored(nn.Linear(5, 3), torch.randn(4, 5))
    with pytest.raises(WrongUnitError):
        scorer.verify({0: losses[1:2].sum()})


def test_units_and_scores_have_to_be_there():
    scorer, losses = scored(nn.Linear(5, 3), torch.randn(4, 5))
    with pytest.raises(ValueError, match=r"`units` must lie in \[0, 2\), got 5 to 5"):
        scorer.verify({5: losses[0]})
    scorer.__exit__(None, None, None)
    with pytest.raises(ValueError, match="no units were scored"):
        scorer.verify({0: losses[0]})
