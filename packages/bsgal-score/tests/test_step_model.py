from __future__ import annotations

import pytest
import torch
from torch import nn

from bsgal_score import GhostScorer, GradientCache, StepModel, loss_difference

OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.5),
    "nesterov": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1, amsgrad=True),
}


class Setting:
    """A small classifier that has been trained for a while, and the three losses of a step."""

    def __init__(self, kind: str, lr: float, n_steps: int = 30) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.optimizer = OPTIMIZERS[kind](self.model.parameters(), 0.01)
        self.rows = torch.randn(60, 6).double()
        self.labels = torch.randint(3, (60,))
        for step in range(n_steps):
            self.optimizer.zero_grad()
            self.loss(torch.arange(step % 4, 40, 4)).backward()
            self.optimizer.step()
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def loss(self, rows):
        # Normalised by a batch of 16 whatever the number of rows.
        outputs = self.model(self.rows[rows])
        return nn.functional.cross_entropy(outputs, self.labels[rows], reduction="sum") / 16

    def gradients(self, rows):
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(self.loss(rows), parameters), strict=True))

    def predicted(self, candidate):
        cache = GradientCache(self.model.named_parameters(), decay=0.0)
        return cache.update_and_score(
            self.gradients(torch.arange(40, 60)),
            self.gradients(candidate),
            form="step",
            step=StepModel(self.optimizer),
        )

    def true(self, candidate):
        return loss_difference(
            self.model,
            self.optimizer,
            reference_loss=lambda: self.loss(torch.arange(40, 60)),
            candidate_loss=lambda: self.loss(candidate),
            batch_loss=lambda: self.loss(torch.arange(15)),
        )


@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov"])
def test_the_relative_gap_to_the_true_effect_shrinks_with_the_learning_rate(kind):
    gaps = []
    for lr in (1e-3, 1e-4, 1e-5):
        setting = Setting(kind, lr)
        gaps.append(abs(setting.predicted([20]) / setting.true([20]) - 1))
    assert gaps[0] < 0.2
    assert gaps[2] < 2e-3
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.3)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_is_predicted_but_for_the_change_of_its_second_moments(kind):
    # After 300 steps a new gradient is 0.4 % of the second moments.
    setting = Setting(kind, 1e-5, n_steps=300)
    true = torch.tensor([setting.true([candidate]) for candidate in range(20, 40)])
    predicted = torch.tensor([setting.predicted([candidate]) for candidate in range(20, 40)])
    assert torch.corrcoef(torch.stack([true, predicted]))[0, 1] > 0.98
    assert (predicted / true).median().item() == pytest.approx(1.0, abs=0.1)


def test_ghost_scores_take_the_same_metric():
    setting = Setting("adam", 1e-3)
    cache = GradientCache(setting.model.named_parameters(), decay=0.0)
    rows = torch.tensor([20, 21, 22, *range(40, 60)])
    index = torch.tensor([0, 1, 1, *[-1] * 20])
    with GhostScorer(setting.model, cache) as scorer:
        scores = scorer.score(setting.loss(rows), index, step=StepModel(setting.optimizer))
    expected = [setting.predicted([20]), setting.predicted([21, 22])]
    assert scores.contributions("step") == pytest.approx(expected, rel=1e-9)
    with GhostScorer(setting.model, cache) as scorer:
        scores = scorer.score(setting.loss(rows), index)
    with pytest.raises(ValueError, match="needs scores made with a `step` model"):
        scores.contributions("step")


def test_look_ahead_gives_the_reference_gradient_after_the_step_and_takes_the_step_back():
    setting = Setting("adam", 0.05)
    setting.optimizer.zero_grad()
    setting.loss(torch.arange(15)).backward()
    before = [p.detach().clone() for p in setting.model.parameters()]
    with StepModel(setting.optimizer).look_ahead(setting.model):
        ahead = setting.gradients(torch.arange(40, 60))
    torch.testing.assert_close(list(setting.model.parameters()), before, rtol=0, atol=0)
    setting.optimizer.step()
    after = setting.gradients(torch.arange(40, 60))
    torch.testing.assert_close(ahead, after, rtol=0, atol=0)


def test_parameters_that_the_optimizer_does_not_move_do_not_count():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.5)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    assert cache.update_and_score(ones, ones, form="step", step=StepModel(optimizer)) == 4.0
    assert [m.scale for m in StepModel(optimizer).metric(cache.parameters)] == [0, 0, 0.5, 0.5]


class WithUnused(nn.Module):
    """A classifier with a branch that no loss has reached yet."""

    def __init__(self, model):
        super().__init__()
        self.used, self.unused = model, nn.Linear(2, 2).double()

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("displacement", ["linear", "exact"])
@pytest.mark.parametrize("curvature", ["none", "diagonal"])
@pytest.mark.parametrize("given", ["absent", "None", "zeros"])
def test_a_parameter_that_is_never_used_counts_as_left_out(kind, displacement, curvature, given):
    setting = Setting(kind, 1e-3)
    options = {"displacement": displacement, "curvature": curvature}

    def scores(model, prefix):
        step = StepModel(setting.optimizer, **options)
        cache = GradientCache(model.named_parameters(), decay=0.0)
        step.reference_gradients(model, lambda: setting.loss(torch.arange(40, 60)))
        reference, candidate = (
            {prefix + name: g for name, g in setting.gradients(rows).items()}
            for rows in (torch.arange(40, 60), [20])
        )
        for name, parameter in model.named_parameters():
            if name not in candidate and given != "absent":
                candidate[name] = None if given == "None" else torch.zeros_like(parameter)
        full = cache.update_and_score(reference, candidate, form="step", step=step)
        with GhostScorer(model, cache) as scorer:
            loss = nn.functional.cross_entropy(
                model(setting.rows[20:22]), setting.labels[20:22], reduction="sum"
            )
            ghost = scorer.score(loss / 16, torch.tensor([0, 1]), step=step, update_cache=False)
        return [full, *ghost.contributions("step")]

    expected = scores(setting.model, "")
    whole = WithUnused(setting.model)
    setting.optimizer.add_param_group({"params": list(whole.unused.parameters())})
    assert scores(whole, "used.") == pytest.approx(expected, rel=1e-12)


def test_a_gradient_on_a_parameter_without_second_moments_needs_the_exact_displacement():
    setting = Setting("adam", 1e-3)
    late = nn.Parameter(torch.ones(3).double())
    setting.optimizer.add_param_group({"params": [late], "lr": 0.01})
    parameters = {**dict(setting.model.named_parameters()), "late": late}
    cache = GradientCache(parameters.items(), decay=0.0)
    k = {"late": torch.tensor([2.0, -0.5, 0.0]).double()}
    c = {"late": torch.ones(3).double()}
    with pytest.raises(ValueError, match=r"no step on 'late' yet.*displacement='exact'"):
        cache.update_and_score(c, k, "step", step=StepModel(setting.optimizer))
    assert cache.n_updates == 0
    with pytest.raises(ValueError, match="no step on 'late' yet"):
        StepModel(setting.optimizer).directions(k, parameters)
    step = StepModel(setting.optimizer, displacement="exact")
    # Adam's first step is the learning rate in the direction of each sign.
    effects = [step.effect({"late": row}, k, parameters) for row in torch.eye(3).double()]
    assert effects == pytest.approx([0.01, -0.01, 0.0], rel=1e-6)


def test_unit_weight_scales_the_prediction():
    setting = Setting("sgd", 0.1)
    parameters = dict(setting.model.named_parameters())
    metric = StepModel(setting.optimizer, unit_weight=0.25).metric(parameters)
    assert metric[0].scale == pytest.approx(0.025)


def test_an_optimizer_that_begins_to_maximise_is_noticed():
    setting = Setting("sgd", 0.1, n_steps=1)
    step = StepModel(setting.optimizer)
    setting.optimizer.param_groups[0]["maximize"] = True
    with pytest.raises(ValueError, match="maximises"):
        step.metric(dict(setting.model.named_parameters()))


def test_misuse_is_explained():
    setting = Setting("adam", 0.1, n_steps=0)
    with pytest.raises(ValueError, match=r"Adam has taken no step on '0\.weight' yet"):
        setting.predicted([20])
    with pytest.raises(TypeError, match="must be SGD, Adam or AdamW, got RMSprop"):
        StepModel(torch.optim.RMSprop(setting.model.parameters()))
    with pytest.raises(ValueError, match="maximises"):
        StepModel(torch.optim.SGD(setting.model.parameters(), lr=0.1, maximize=True))
    cache = GradientCache(setting.model.named_parameters(), decay=0.0)
    with pytest.raises(ValueError, match="`step` must be given with form='step'"):
        cache.update_and_score({}, {}, form="step")
    other = StepModel(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    with pytest.raises(ValueError, match="moves none of the cached parameters"):
        cache.update_and_score({}, {}, form="step", step=other)
