from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from bsgal_score import loss_difference


def make(make_optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)
    ).double()
    optimizer = make_optimizer(model.parameters())
    data = {
        name: (torch.randn(n, 6).double(), torch.randint(3, (n,)))
        for name, n in {"batch": 16, "reference": 32, "candidate": 4}.items()
    }

    def loss(name):
        inputs, labels = data[name]
        return nn.functional.cross_entropy(model(inputs), labels)

    for _ in range(3):
        optimizer.zero_grad()
        loss("batch").backward()
        optimizer.step()
    return model, optimizer, loss


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}


def everything(model, optimizer):
    """Return copies of all that must not change."""
    return {
        "tensors": [t.clone() for t in (*model.parameters(), *model.buffers())],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": torch.utils._pytree.tree_map(
            lambda x: x.clone() if isinstance(x, torch.Tensor) else x, optimizer.state_dict()
        ),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - that it is kept is the test
        "python": random.getstate(),
    }


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_all_state_is_restored_bit_for_bit(kind, in_batch):
    model, optimizer, loss = make(OPTIMIZERS[kind])
    before = everything(model, optimizer)
    kept = [p.grad for p in model.parameters()]
    loss_difference(
        model,
        optimizer,
        reference_loss=lambda: loss("reference") + random.random() + np.random.rand(),  # noqa: NPY002
        candidate_loss=lambda: loss("candidate"),
        batch_loss=(lambda: loss("batch")) if in_batch else None,
    )
    after = everything(model, optimizer)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), kept, strict=True))


def test_a_fresh_optimizer_is_fresh_again():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    loss_difference(
        model,
        optimizer,
        reference_loss=lambda: model(torch.ones(1, 3)).square().sum(),
        candidate_loss=lambda: model(torch.ones(1, 3)).square().sum(),
    )
    assert len(optimizer.state) == 0
    assert model.weight.grad is None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_alone_is_the_change_of_a_step_done_by_hand(kind):
    model, optimizer, loss = make(OPTIMIZERS[kind])
    model.eval()
    got = loss_difference(
        model,
        optimizer,
        reference_loss=lambda: loss("reference"),
        candidate_loss=lambda: loss("candidate"),
    )
    before = loss("reference").item()
    optimizer.zero_grad()
    loss("candidate").backward()
    optimizer.step()
    assert got == before - loss("reference").item()


def test_in_the_batch_is_with_against_without():
    def after_step(*names):
        model, optimizer, loss = make(OPTIMIZERS["adamw"])
        model.eval()
        optimizer.zero_grad()
        for name in names:
            loss(name).backward()
        optimizer.step()
        return loss("reference").item()

    model, optimizer, loss = make(OPTIMIZERS["adamw"])
    model.eval()
    got = loss_difference(
        model,
        optimizer,
        reference_loss=lambda: loss("reference"),
        candidate_loss=lambda: loss("candidate"),
        batch_loss=lambda: loss("batch"),
    )
    assert got == after_step("batch") - after_step("batch", "candidate")


def test_the_same_noise_is_drawn_with_and_without_the_candidate():
    model, optimizer, loss = make(OPTIMIZERS["sgd"])
    zero = loss_difference(
        model,
        optimizer,
        reference_loss=lambda: loss("reference"),
        candidate_loss=lambda: 0.0 * loss("candidate"),
        batch_loss=lambda: loss("batch"),
    )
    assert zero == 0.0


def test_before_step_sees_the_gradients():
    model, optimizer, loss = make(OPTIMIZERS["sgd"])
    model.eval()

    def clip():
        for p in model.parameters():
            p.grad.zero_()

    difference = loss_difference(
        model,
        optimizer,
        reference_loss=lambda: loss("reference"),
        candidate_loss=lambda: loss("candidate"),
        before_step=clip,
    )
    assert difference == 0.0


@pytest.mark.parametrize("raises_in", ["reference", "candidate", "batch", "before_step"])
def test_all_state_is_restored_when_a_closure_raises(raises_in):
    model, optimizer, loss = make(OPTIMIZERS["adamw"])
    model[1].eval()
    before = everything(model, optimizer)
    modes = [module.training for module in model.modules()]

    def raising(name, value):
        def run():
            model.train(raises_in != "reference")
            torch.rand(3)
            if name == raises_in:
                raise RuntimeError(f"{name} failed")
            return value()

        return run

    with pytest.raises(RuntimeError, match=f"{raises_in} failed"):
        loss_difference(
            model,
            optimizer,
            reference_loss=raising("reference", lambda: loss("reference")),
            candidate_loss=raising("candidate", lambda: loss("candidate")),
            batch_loss=raising("batch", lambda: loss("batch")),
            before_step=raising("before_step", lambda: None),
        )
    torch.testing.assert_close(everything(model, optimizer), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes


def test_given_generators_draw_the_same_each_time_and_are_restored():
    model, optimizer, loss = make(OPTIMIZERS["sgd"])
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()

    def noisy():
        return loss("reference") + torch.rand((), generator=generator)

    difference = loss_difference(
        model,
        optimizer,
        reference_loss=noisy,
        candidate_loss=lambda: 0.0 * loss("candidate"),
        batch_loss=lambda: loss("batch") * torch.rand((), generator=generator),
        generators=[generator],
    )
    assert difference == 0.0
    assert torch.equal(generator.get_state(), before)
