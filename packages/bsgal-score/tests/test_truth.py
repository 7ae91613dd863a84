"""Scores predict what a step does to the loss, and tell good units from bad ones, on any seed.

A first-order score has something to say while the reference loss still falls. Once a model has
converged on clean data, the reference gradient is sampling noise and so is every score against it;
so these models are trained until they are mostly right, and no longer.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bsgal_score import REFERENCE, GhostScorer, GradientCache, StepModel, loss_difference

SEEDS = range(8)
SIDE_PX = 12
N_UNITS = 30
N_CLASSES = 5


class Classes:
    """Images (n, 1, 12, 12) of five smooth patterns in noise, and a small network."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng
        coarse = torch.randn(N_CLASSES, 1, 4, 4, generator=rng)
        self.patterns = nn.functional.interpolate(coarse, (SIDE_PX, SIDE_PX), mode="bilinear")
        self.model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(288, N_CLASSES),
        )  # fmt: skip

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(N_CLASSES, (n,), generator=self.rng)
        noise = torch.randn(n, 1, SIDE_PX, SIDE_PX, generator=self.rng)
        return self.patterns[labels] + noise, labels

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(images), labels, reduction="none")

    def spoil(self, kind: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if kind == "noise":
            return images.std() * torch.randn(images.shape, generator=self.rng), labels
        assert kind == "flipped_label"
        shift = torch.randint(1, N_CLASSES, labels.shape, generator=self.rng)
        return images, (labels + shift) % N_CLASSES

    def quality(self) -> float:
        images, labels = self.draw(500)
        return (self.model(images).argmax(1) == labels).double().mean().item()


class Masks:
    """Images (n, 1, 12, 12) of a disc or square in noise with its mask, and a network for masks."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng
        self.model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        centre = 4 + 4 * torch.rand(n, 2, 1, 1, generator=self.rng)
        radius = 2.5 + 1.5 * torch.rand(n, 1, 1, generator=self.rng)
        grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE_PX) + 0.5] * 2, indexing="ij"))
        dy, dx = (grid - centre).abs().unbind(1)
        is_disc = torch.rand(n, 1, 1, generator=self.rng) < 0.5
        masks = torch.where(is_disc, dy**2 + dx**2 <= radius**2, torch.maximum(dy, dx) <= radius)
        noise = 0.3 * torch.randn(n, SIDE_PX, SIDE_PX, generator=self.rng)
        return (2.0 * masks + noise)[:, None], masks

    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(
            self.model(images)[:, 0], masks.float(), reduction="none"
        ).mean(dim=(1, 2))

    def spoil(self, kind: str, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        if kind == "moved_mask":
            return images, masks.roll((5, 5), (1, 2))
        assert kind == "anothers_mask"
        return images, masks.roll(1, 0)

    def quality(self) -> float:
        images, masks = self.draw(100)
        return ((self.model(images)[:, 0] > 0) == masks).double().mean().item()


def trained(task, seed, make_optimizer, n_steps):
    torch.manual_seed(seed)
    task = task(torch.Generator().manual_seed(seed))
    optimizer = make_optimizer(task.model.parameters())
    for _ in range(n_steps):
        optimizer.zero_grad()
        task.losses(*task.draw(64)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return task, optimizer


def pairs_in_order(task, kind, step):
    """Score clean and spoilt units against 256 clean rows: the share of pairs in order, by form."""
    parts = [task.draw(N_UNITS), task.spoil(kind, *task.draw(N_UNITS)), task.draw(256)]
    data = [torch.cat(both) for both in zip(*parts, strict=True)]
    index = torch.cat([torch.arange(2 * N_UNITS), torch.full((256,), REFERENCE)])
    cache = GradientCache(task.model.named_parameters(), decay=0.0)
    with GhostScorer(task.model, cache) as scorer:
        scores = scorer.score(task.losses(*data).mean(), index, step=step)
    found = {}
    for form in ("cosine", "dot", "step"):
        values = torch.tensor(scores.contributions(form))
        clean, spoilt = values[:N_UNITS], values[N_UNITS:]
        found[form] = (clean[:, None] > spoilt).double().mean().item()
    return found


# Measured: the mean share of pairs in order over the eight seeds, and the lowest of a seed, for the
# form that does worst. Asserted: a margin below.
SGD = ("sgd", lambda p: torch.optim.SGD(p, lr=0.05), 20)
SGD_MASKS = ("sgd", lambda p: torch.optim.SGD(p, lr=0.1), 60)
ADAM = ("adam", lambda p: torch.optim.Adam(p, lr=1e-3), 20)
ADAM_MASKS = ("adam", lambda p: torch.optim.Adam(p, lr=3e-3), 60)
CASES = [
    (Classes, SGD, {"flipped_label": (0.93, 0.75), "noise": (0.80, 0.60)}),  # 0.97 0.87, 0.86 0.73
    (Classes, ADAM, {"flipped_label": (0.85, 0.65), "noise": (0.77, 0.60)}),  # 0.91 0.80, 0.84 0.79
    (Masks, SGD_MASKS, {"moved_mask": (0.95, 0.90), "anothers_mask": (0.95, 0.90)}),  # all 1.00
    (Masks, ADAM_MASKS, {"moved_mask": (0.95, 0.85), "anothers_mask": (0.85, 0.60)}),
    # 0.99 0.95, 0.91 0.75
]


@pytest.mark.parametrize(("task", "training", "floors"), CASES)
def test_spoilt_units_score_lower_than_clean_ones(task, training, floors):
    _, make_optimizer, n_steps = training
    shares = {kind: {form: [] for form in ("cosine", "dot", "step")} for kind in floors}
    qualities = []
    for seed in SEEDS:
        one, optimizer = trained(task, seed, make_optimizer, n_steps)
        qualities.append(one.quality())
        for kind, by_form in shares.items():
            for form, share in pairs_in_order(one, kind, StepModel(optimizer)).items():
                by_form[form].append(share)
    # A model that knows nothing, or is done, would make this a test of noise.
    assert min(qualities) > 0.85
    for kind, (mean_floor, seed_floor) in floors.items():
        for form, values in shares[kind].items():
            assert sum(values) / len(values) > mean_floor, (kind, form, values)
            assert min(values) > seed_floor, (kind, form, values)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_gap_to_the_true_change_shrinks_linearly_with_the_step(kind):
    make_optimizer, displacement = {
        "sgd": (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "linear"),
        "adam": (lambda p: torch.optim.Adam(p, lr=1e-3), "exact"),
    }[kind]
    for seed in list(SEEDS)[:5]:
        task, optimizer = trained(Classes, seed, make_optimizer, 15)
        task.model.double()
        for state in optimizer.state.values():
            for key, value in state.items():
                if torch.is_tensor(value) and key != "step":
                    state[key] = value.double()
        reference, batch, units = ((x.double(), y) for x, y in map(task.draw, (64, 15, 6)))
        gaps = []
        for lr in (1e-3, 1e-4, 1e-5):
            for group in optimizer.param_groups:
                group["lr"] = lr
            step = StepModel(optimizer, displacement=displacement)
            predicted, true = effects(task, optimizer, step, reference, batch, units)
            gaps.append(((predicted - true).norm() / true.norm()).item())
        assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.3), (seed, gaps)
        assert gaps[2] == pytest.approx(gaps[1] / 10, rel=0.3), (seed, gaps)


def effects(task, optimizer, step, reference, batch, units):
    """Return what each unit does to the reference loss in a batch of 16: as predicted, and true."""

    def share(images, labels):
        return task.losses(images, labels).sum() / 16

    parameters = dict(task.model.named_parameters())
    cache = GradientCache(parameters.items(), decay=0.0)
    reference_loss = lambda: task.losses(*reference).mean()  # noqa: E731 - used twice
    optimizer.zero_grad()
    share(*batch).backward()
    reference_gradients = step.reference_gradients(task.model, reference_loss)
    predicted, true = [], []
    for i in range(len(units[0])):
        unit = [part[i : i + 1] for part in units]
        found = torch.autograd.grad(share(*unit), list(parameters.values()))
        candidate = dict(zip(parameters, found, strict=True))
        predicted.append(cache.update_and_score(reference_gradients, candidate, "step", step=step))
        true.append(
            loss_difference(
                task.model,
                optimizer,
                reference_loss=reference_loss,
                candidate_loss=lambda unit=unit: share(*unit),
                batch_loss=lambda: share(*batch),
            )
        )
    return torch.tensor(predicted), torch.tensor(true)


@pytest.mark.parametrize(("task", "kind"), [(Classes, "flipped_label"), (Masks, "moved_mask")])
def test_units_rank_as_the_true_change_does_at_the_rate_of_training(task, kind):
    _, make_optimizer, n_steps = ADAM if task is Classes else ADAM_MASKS
    rho = {"plain": [], "look_ahead": []}
    for seed in list(SEEDS)[:4]:
        one, optimizer = trained(task, seed, make_optimizer, n_steps)
        reference, batch = one.draw(64), one.draw(15)
        parts = [one.draw(6), one.spoil(kind, *one.draw(6))]
        units = [torch.cat(both) for both in zip(*parts, strict=True)]
        ahead = StepModel(optimizer, reference_at="look_ahead", displacement="exact")
        for name, step in {"plain": StepModel(optimizer), "look_ahead": ahead}.items():
            rho[name].append(spearman(*effects(one, optimizer, step, reference, batch, units)))
    # Measured: 1.00 on all seeds with the look-ahead; without it 0.82 on average (0.68 to 0.92) for
    # classes and 0.99 for masks.
    assert min(rho["look_ahead"]) > 0.95, rho
    assert sum(rho["plain"]) / 4 > 0.7, rho


def spearman(first, second):
    """Return the rank correlation of two vectors without ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return torch.corrcoef(ranks)[0, 1].item()
