"""What a step model tries out leaves no trace, and graphs built before stay good."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bsgal_score import REFERENCE, GhostScorer, GradientCache, StepModel

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}
INDEX = torch.tensor([REFERENCE, REFERENCE, 0, 0, 1, 1])


class Setting:
    """A model with live and frozen statistics and drop-out, after two steps, with `.grad`."""

    def __init__(self, kind):
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8).eval(), nn.Linear(8, 2))
        self.model = nn.Sequential(self.trunk, self.head)
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.rows = torch.randn(6, 6)
        for _ in range(3):
            if any(p.grad is not None for p in self.model.parameters()):
                self.optimizer.step()
            self.optimizer.zero_grad()
            self.loss().backward()
        self.cache = GradientCache(
            ((f"1.{n}", p) for n, p in self.head.named_parameters()), decay=0.5
        )

    def loss(self):
        return self.model(self.rows).square().mean()

    def everything(self):
        state = self.optimizer.state_dict()["state"]
        return {
            "model": {name: t.clone() for name, t in self.model.state_dict().items()},
            "grads": [p.grad.clone() for p in self.model.parameters()],
            "state": {n: {k: v.clone() for k, v in own.items()} for n, own in state.items()},
            "random": torch.get_rng_state(),
        }

    def gradients_after(self, within=lambda: None):
        """Return the gradients of a backward pass, with something done since the forward pass."""
        torch.manual_seed(1)
        loss = self.loss()
        within()
        return torch.autograd.grad(loss, list(self.model.parameters()))


def exact(**options):
    return {"rtol": 0, "atol": 0, **options}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("where", ["now", "look_ahead", "extrapolated"])
@pytest.mark.parametrize("curvature", ["none", "kfac"])
def test_reference_gradients_change_nothing_and_the_graph_stays_good(kind, where, curvature):
    setting, other = Setting(kind), Setting(kind)
    step = StepModel(setting.optimizer, reference_at=where, curvature=curvature)
    before = setting.everything()
    step.reference_gradients(setting.model, setting.loss)
    torch.testing.assert_close(setting.everything(), before, **exact())
    found = setting.gradients_after(lambda: step.reference_gradients(setting.model, setting.loss))
    torch.testing.assert_close(found, other.gradients_after(), **exact())


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("curvature", ["scalar", "diagonal", "kfac"])
def test_scores_with_curvature_keep_the_graph(kind, curvature):
    setting, other = Setting(kind), Setting(kind)
    step = StepModel(setting.optimizer, curvature=curvature)
    found = []
    for one, model in ((setting, step), (other, None)):
        torch.manual_seed(1)
        with GhostScorer(one.head, one.cache) as scorer:
            loss = one.loss()
            scorer.score(loss, INDEX, step=model)
        one.optimizer.zero_grad()
        loss.backward()
        one.optimizer.step()
        found.append([p.detach() for p in one.model.parameters()])
    torch.testing.assert_close(*found, **exact())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_look_ahead_is_the_optimizer_s_own_step(kind):
    setting, other = Setting(kind), Setting(kind)
    step = StepModel(setting.optimizer)
    before = setting.everything()
    moved = step.batch_step(dict(setting.model.named_parameters()))
    with step.look_ahead(setting.model):
        ahead = [p.detach().clone() for p in setting.model.parameters()]
        setting.loss().backward()
    torch.testing.assert_close(setting.everything(), before, **exact())
    start = [p.detach().clone() for p in other.model.parameters()]
    other.optimizer.step()
    expected = [p.detach() for p in other.model.parameters()]
    torch.testing.assert_close(ahead, expected, **exact())
    differences = [a - b for a, b in zip(start, expected, strict=True)]
    torch.testing.assert_close(list(moved.values()), differences, **exact())


def test_everything_is_put_back_if_the_reference_loss_raises():
    setting = Setting("adamw")
    step = StepModel(setting.optimizer, reference_at="look_ahead")
    before = setting.everything()

    def failing():
        setting.model.train()
        setting.loss()
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        step.reference_gradients(setting.model, failing)
    torch.testing.assert_close(setting.everything(), before, **exact())
    assert not setting.head[1].training


@pytest.mark.parametrize("curvature", ["none", "diagonal"])
def test_a_reference_pass_within_the_block_is_no_part_of_it(curvature):
    setting = Setting("sgd")
    step = StepModel(setting.optimizer, reference_at="look_ahead", curvature=curvature)
    plain = GhostScorer(setting.head, setting.cache, other_layers="exact")
    found = []

    def few_rows():
        return setting.model(setting.rows[:4]).square().mean()

    for within in (lambda: None, lambda: step.reference_gradients(setting.model, few_rows)):
        torch.manual_seed(1)
        with plain:
            loss = setting.loss()
            within()
            scores = plain.score(loss, INDEX, update_cache=False)
        found.append(scores.norm)
    torch.testing.assert_close(*found, **exact())
