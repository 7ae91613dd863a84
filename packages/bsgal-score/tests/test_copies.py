"""What is copied, alone or with its model, goes on as if it had not been."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bsgal_score import REFERENCE, ClassRowScorer, GhostScorer, GradientCache
from bsgal_score.errors import ReboundParameterError

INDEX = torch.tensor([REFERENCE, 0, 0, 1])
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda one: pickle.loads(pickle.dumps(one))}


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3)).double()
    cache = GradientCache(model.named_parameters(), decay=0.5, rowwise=["2.*"])
    return model, GhostScorer(model, cache, other_layers="exact")


def use(model, scorer, seed):
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).double()
    with scorer:
        loss = model(rows).square().sum()
        return scorer.score(loss, INDEX, rows=[0, seed]).contributions()


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_that_was_made_without_the_model_is_rebound_to_a_copy_of_it(how):
    model, scorer = make()
    use(model, scorer, 1)
    other_model, other = COPIES[how](model), COPIES[how](scorer)
    with pytest.raises(ValueError, match=r"call scorer\.rebind"):
        use(other_model, other, 2)
    other.rebind(other_model, other_model.named_parameters())
    assert use(other_model, other, 2) == use(model, scorer, 2)
    other_model[0].weight.data.mul_(2)
    assert use(other_model, other, 1) != use(model, scorer, 1)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_that_was_made_with_the_model_needs_no_word(how):
    model, scorer = make()
    use(model, scorer, 1)
    other_model, other = COPIES[how]((model, scorer))
    assert use(other_model, other, 2) == use(model, scorer, 2)


def test_a_replaced_parameter_is_rebound():
    model, scorer = make()
    use(model, scorer, 1)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.raises(ReboundParameterError, match=r"call scorer\.rebind"):
        use(model, scorer, 2)
    scorer.rebind(model, model.named_parameters())
    scorer.cache.check_parameters(model.named_parameters())
    use(model, scorer, 2)


def test_other_parameters_are_refused_and_change_nothing():
    model, scorer = make()
    other = nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 2)).double()
    message = r"'2\.weight', cached with shape \(3, 4\), has \(2, 4\)"
    with pytest.raises(ReboundParameterError, match=message):
        scorer.rebind(other, other.named_parameters())
    with pytest.raises(ReboundParameterError, match=r"'0\.weight', .* is missing in the copy"):
        scorer.rebind(other, other.named_parameters("model"))
    assert len(use(model, scorer, 1)) == 2


def rows_of(scorer, layer, seed):
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    is_real = torch.tensor([True, True, False, False])
    with scorer:
        loss = layer(rows).logsumexp(dim=1).sum()
        return scorer.score(loss, torch.arange(4), torch.tensor([0, 1, 0, 1]), is_real)


@pytest.mark.parametrize("how", COPIES)
def test_class_rows_are_rebound(how):
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    scorer = ClassRowScorer(layer)
    rows_of(scorer, layer, 0)
    other_layer, other = COPIES[how](layer), COPIES[how](scorer)
    other.rebind(other_layer)
    assert rows_of(other, other_layer, 1) == rows_of(scorer, layer, 1)
    with pytest.raises(ValueError, match=r"inputs and outputs \[\(5, 3\)\], got \[\(5, 2\)\]"):
        other.rebind(nn.Linear(5, 2))
