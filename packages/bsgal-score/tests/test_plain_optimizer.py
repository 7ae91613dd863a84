"""Which optimizers the step-aware form takes: by what their steps do, not by their name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from bsgal_score import GradientCache, StepModel


class InheritedAdamW(AdamW):
    """A subclass that only brings other defaults and a method of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1, weight_decay=0.3)
        self.n_saves = 0

    def state_dict(self):
        self.n_saves += 1
        return super().state_dict()


class ShrinkingAdamW(AdamW):
    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.5)
        return loss


class ForgetfulSGD(SGD):
    def _init_group(self, *args, **kwargs):
        self.state.clear()
        return super()._init_group(*args, **kwargs)


class Transparent:
    """A wrapper that only hands on, and skips steps as accelerate's does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def step(self):
        pass


class Lookahead(Optimizer):
    """A wrapper with slow weights, which its steps pull the weights to."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer


def make(kind, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = kind(model.parameters(), **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def score(model, optimizer, **options):
    cache = GradientCache(model.named_parameters(), decay=0.0)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    step = StepModel(optimizer, reference_at="look_ahead", **options)
    reference = step.reference_gradients(model, lambda: model(torch.ones(3, 4)).square().mean())
    return cache.update_and_score(reference, ones, "step", step=step)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("displacement", ["linear", "exact"])
def test_a_wrapper_scores_as_what_it_wraps(kind, displacement):
    model, optimizer = make(kind, lr=0.01)
    expected = score(model, optimizer, displacement=displacement)
    for wrapped in (Transparent(optimizer), Transparent(Transparent(optimizer))):
        assert score(model, wrapped, displacement=displacement) == expected


def test_the_optimizer_that_accelerate_prepares_is_taken():
    accelerate = pytest.importorskip("accelerate")
    model, optimizer = make(AdamW, lr=0.01)
    expected = score(model, optimizer)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    prepared = accelerator.prepare(optimizer)
    assert type(prepared) is not AdamW
    # Also where its own step would be skipped, in the midst of an accumulation.
    accelerator.gradient_state._set_sync_gradients(False)
    assert score(model, prepared) == expected
    prepared.param_groups[0]["lr"] *= 2
    assert score(model, prepared) != expected


def test_a_learning_rate_schedule_changes_no_update():
    model, optimizer = make(SGD, lr=0.01)
    expected = score(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    assert score(model, optimizer) == expected
    torch.testing.assert_close(list(model.parameters()), before, rtol=0, atol=0)


def test_a_subclass_that_inherits_the_update_is_taken():
    model, optimizer = make(InheritedAdamW)
    expected_model, expected_optimizer = make(AdamW, lr=0.1, weight_decay=0.3)
    for displacement in ("linear", "exact"):
        expected = score(expected_model, expected_optimizer, displacement=displacement)
        assert score(model, optimizer, displacement=displacement) == expected


@pytest.mark.parametrize(
    ("kind", "method", "base"),
    [(ShrinkingAdamW, "step", "AdamW"), (ForgetfulSGD, "_init_group", "SGD")],
)
def test_a_subclass_that_changes_the_update_is_refused(kind, method, base):
    _, optimizer = make(kind, lr=0.01)
    message = f"is a {kind.__name__}, whose {method} is not that of {base}"
    for given in (optimizer, Transparent(optimizer)):
        with pytest.raises(TypeError, match=message):
            StepModel(given)


def test_other_optimizers_are_refused_also_in_a_wrapper():
    _, optimizer = make(torch.optim.RMSprop, lr=0.01)
    for given in (optimizer, Transparent(optimizer)):
        with pytest.raises(TypeError, match="must be SGD, Adam or AdamW, got RMSprop"):
            StepModel(given)
    _, inner = make(SGD, lr=0.01)
    with pytest.raises(TypeError, match="must be SGD, Adam or AdamW, got Lookahead"):
        StepModel(Lookahead(inner))
