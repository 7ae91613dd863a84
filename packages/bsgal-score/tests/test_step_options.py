"""Reference points, curvature and Adam's exact displacement in the step-aware form."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from bsgal_score import (
    FixedThreshold,
    GhostScorer,
    GradientCache,
    StepModel,
    errors,
    loss_difference,
)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
}
CANDIDATES = range(40, 60)


class Setting:
    """A small trained classifier; rows 0-39 are trained on, 40-59 are candidates, 60- reference."""

    def __init__(self, kind, n_steps=25, dtype=torch.float64) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.rows = torch.randn(90, 6).to(dtype)
        self.labels = (self.rows[:, :3] + 0.5 * torch.randn(90, 3)).argmax(dim=1)
        self.parameters = dict(self.model.named_parameters())
        for step in range(n_steps):
            self.optimizer.zero_grad()
            self.loss(range(step % 4, 40, 4)).backward()
            self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, rows, normaliser=16):
        rows = list(rows)
        outputs = self.model(self.rows[rows])
        return nn.functional.cross_entropy(outputs, self.labels[rows], reduction="sum") / normaliser

    def reference_loss(self):
        return self.loss(range(60, 90), normaliser=30)

    def gradients(self, loss):
        found = torch.autograd.grad(loss, list(self.parameters.values()))
        return dict(zip(self.parameters, found, strict=True))

    def predicted(self, step, in_batch=True):
        self.optimizer.zero_grad()
        if in_batch:
            self.loss(range(15)).backward()
        cache = GradientCache(self.model.named_parameters(), decay=0.0)
        reference = step.reference_gradients(self.model, self.reference_loss)
        scores = []
        for row in CANDIDATES:
            candidate = self.gradients(self.loss([row]))
            scores.append(cache.update_and_score(reference, candidate, "step", step=step))
        return torch.tensor(scores)

    def true(self, in_batch=True):
        return torch.tensor(
            [
                loss_difference(
                    self.model,
                    self.optimizer,
                    reference_loss=self.reference_loss,
                    candidate_loss=lambda row=row: self.loss([row]),
                    batch_loss=(lambda: self.loss(range(15))) if in_batch else None,
                )
                for row in CANDIDATES
            ]
        )


def error(predicted, true):
    return ((predicted - true).norm() / true.norm()).item()


@pytest.mark.parametrize("kind", ["adam", "adamw", "amsgrad"])
def test_the_exact_displacement_is_the_difference_of_two_real_steps(kind):
    setting = Setting(kind)
    setting.loss(range(15)).backward()
    candidate = setting.gradients(setting.loss([40]))
    step = StepModel(setting.optimizer, displacement="exact", unit_weight=3.0)
    ones = {name: torch.ones_like(p) for name, p in setting.parameters.items()}
    got = {name: step.effect(ones, {name: k}, setting.parameters) for name, k in candidate.items()}
    without = step.batch_step(setting.parameters)
    for name, parameter in setting.parameters.items():
        parameter.grad += 3.0 * candidate[name]
    with_it = step.batch_step(setting.parameters)
    for name in candidate:
        expected = (with_it[name] - without[name]).sum().item()
        assert got[name] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_exact_displacement_of_a_small_candidate_is_the_linear_one():
    # In float32, where the difference of two steps would drown in rounding.
    setting = Setting("adamw", dtype=torch.float32)
    ones = {name: torch.ones_like(p) for name, p in setting.parameters.items()}
    small = {name: 1e-6 * torch.ones_like(p) for name, p in setting.parameters.items()}
    linear, exact = (
        StepModel(setting.optimizer, displacement=kind).effect(ones, small, setting.parameters)
        for kind in ("linear", "exact")
    )
    # One step of no gradient takes v to β₂ v, with its bias correction.
    assert exact == pytest.approx(linear, rel=0.03)


def test_early_in_training_only_the_exact_displacement_predicts_adam():
    setting = Setting("adam", n_steps=3)
    true = setting.true()
    options = {"reference_at": "look_ahead"}
    linear = error(setting.predicted(StepModel(setting.optimizer, **options)), true)
    options["displacement"] = "exact"
    exact = error(setting.predicted(StepModel(setting.optimizer, **options)), true)
    assert exact < 0.25 < linear


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_look_ahead_holds_the_cross_term_with_the_batch(kind):
    setting = Setting(kind)
    for group in setting.optimizer.param_groups:
        group["lr"] *= 3
    true = setting.true()
    now, ahead = (
        error(
            setting.predicted(
                StepModel(setting.optimizer, reference_at=where, displacement="exact")
            ),
            true,
        )
        for where in ("now", "look_ahead")
    )
    assert ahead < 0.75 * now


@pytest.mark.parametrize(
    ("curvature", "share"), [("scalar", 0.9), ("diagonal", 0.9), ("kfac", 0.5)]
)
def test_curvature_explains_a_share_of_the_error(curvature, share):
    # Where the model knows how unsure it is, the Fisher matrix is the Hessian's main part.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    parameters = dict(model.named_parameters())

    def loss(n_rows):
        rows = torch.randn(n_rows, 6).double()
        labels = (rows[:, :3] + 0.7 * torch.randn(n_rows, 3)).argmax(dim=1)
        return lambda: nn.functional.cross_entropy(model(rows), labels)

    for _ in range(500):
        optimizer.zero_grad()
        loss(32)().backward()
        optimizer.step()
    optimizer.zero_grad()
    reference, candidates = loss(400), [loss(1) for _ in range(20)]
    true = torch.tensor(
        [
            loss_difference(model, optimizer, reference_loss=reference, candidate_loss=candidate)
            for candidate in candidates
        ]
    )
    errors_by_kind = {}
    for kind in ("none", curvature):
        step = StepModel(optimizer, curvature=kind)
        cache = GradientCache(parameters.items(), decay=0.0)
        cache.update(step.reference_gradients(model, reference))
        predicted = [
            step.effect(
                step.reference(cache),
                dict(
                    zip(
                        parameters,
                        torch.autograd.grad(candidate(), list(parameters.values())),
                        strict=True,
                    )
                ),
                parameters,
            )
            for candidate in candidates
        ]
        errors_by_kind[kind] = error(torch.tensor(predicted), true)
    assert errors_by_kind[curvature] < share * errors_by_kind["none"]


def rows_of_gradients(setting):
    """Return each reference row's share of the gradient: {name: (30, ...)}."""
    rows = [setting.gradients(setting.loss([row], normaliser=30)) for row in range(60, 90)]
    return {name: torch.stack([row[name] for row in rows]) for name in setting.parameters}


def test_the_diagonal_is_that_of_the_empirical_fisher_matrix():
    setting = Setting("sgd")
    step = StepModel(setting.optimizer, curvature="diagonal")
    step.reference_gradients(setting.model, setting.reference_loss)
    diagonal = {
        name: 30 * rows.square().sum(0) for name, rows in rows_of_gradients(setting).items()
    }
    x = {name: torch.randn_like(p) for name, p in setting.parameters.items()}
    expected = {name: diagonal[name] * x[name] for name in x}
    torch.testing.assert_close(step.curvature.times(x), expected)
    flat = torch.cat([h.flatten() for h in diagonal.values()])
    scalar = StepModel(setting.optimizer, curvature="scalar")
    scalar.reference_gradients(setting.model, setting.reference_loss)
    h = (flat.square().sum() / flat.sum()).item()
    expected = {name: h * tensor for name, tensor in x.items()}
    torch.testing.assert_close(scalar.curvature.times(x), expected)


def test_kfac_is_the_fisher_matrix_where_all_inputs_agree():
    # With equal inputs a, every share is δ aᵀ and the matrix is exactly A ⊗ B.
    setting = Setting("sgd")
    model = setting.model[2]
    inputs = torch.randn(1, 8).double().expand(30, 8)
    labels = setting.labels[60:]

    def loss(rows=slice(None)):
        outputs = model(inputs[rows])
        return nn.functional.cross_entropy(outputs, labels[rows], reduction="sum") / 30

    step = StepModel(setting.optimizer, curvature="kfac")
    step.reference_gradients(model, loss)
    shares = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss([row]), list(model.parameters()))])
        for row in range(30)
    ]
    x = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    flat = torch.cat([t.flatten() for t in x.values()])
    expected = 30 * sum((share @ flat) ** 2 for share in shares)
    assert step.curvature.quadratic(x) == pytest.approx(expected.item(), rel=1e-9)
    # A bias that is not given counts as zero.
    no_bias = {"weight": x["weight"], "bias": torch.zeros_like(x["bias"])}
    assert step.curvature.quadratic({"weight": x["weight"]}) == pytest.approx(
        step.curvature.quadratic(no_bias)
    )


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_kfac_of_a_convolution_of_one_position_is_that_of_the_linear_layer(options):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, **options).double()
    # Such a size that there is exactly one position.
    side = options.get("dilation", 1) * 2 + 1 - 2 * options.get("padding", 0)
    inputs = torch.randn(10, 3, side, side).double()
    patches = nn.functional.unfold(inputs, 3, **options).flatten(1)
    linear = nn.Linear(27, 4).double()
    with torch.no_grad():
        linear.weight.copy_(convolution.weight.flatten(1))
        linear.bias.copy_(convolution.bias)
    quadratics = []
    for layer, x in ((convolution, inputs), (linear, patches)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        step = StepModel(optimizer, curvature="kfac")
        step.reference_gradients(layer, lambda x=x, layer=layer: layer(x).square().mean())
        moved = {"weight": torch.ones_like(layer.weight), "bias": torch.ones_like(layer.bias)}
        quadratics.append(step.curvature.quadratic(moved))
    assert quadratics[0] == pytest.approx(quadratics[1], rel=1e-9)


def test_layers_without_factors_keep_a_diagonal():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 3)
    )
    inputs = torch.randn(6, 4, 5, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kfac, diagonal = (StepModel(optimizer, curvature=kind) for kind in ("kfac", "diagonal"))
    for step in (kfac, diagonal):
        step.reference_gradients(model, lambda: model(inputs).square().mean())
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    by_kfac, by_diagonal = (step.curvature.times(ones) for step in (kfac, diagonal))
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert by_diagonal[name].abs().sum() > 0
        torch.testing.assert_close(by_kfac[name], by_diagonal[name])
    assert not torch.allclose(by_kfac["3.weight"], by_diagonal["3.weight"])


def test_the_estimate_is_a_running_average_with_bias_correction():
    setting = Setting("sgd")
    step = StepModel(setting.optimizer, curvature="diagonal", curvature_decay=0.5)
    x = {name: torch.ones_like(p) for name, p in setting.parameters.items()}
    singles = []
    for rows in (range(60, 70), range(70, 80)):
        one = StepModel(setting.optimizer, curvature="diagonal")
        for each in (one, step):
            each.reference_gradients(setting.model, lambda rows=rows: setting.loss(rows, 10))
        singles.append(one.curvature.quadratic(x))
    # Weights 1/2·1/2 and 1/2, divided by their sum.
    expected = (singles[0] + 2 * singles[1]) / 3
    assert step.curvature.quadratic(x) == pytest.approx(expected)


@pytest.mark.parametrize("curvature", ["none", "scalar", "diagonal", "kfac"])
@pytest.mark.parametrize("displacement", ["linear", "exact"])
def test_ghost_scores_equal_scores_of_full_gradients(curvature, displacement):
    setting = Setting("adamw")
    setting.loss(range(15)).backward()
    options = {"curvature": curvature, "displacement": displacement}
    step = StepModel(setting.optimizer, **options)
    units = {0: [40], 1: [41, 42], 2: [43]}
    rows = [row for unit in units.values() for row in unit] + list(range(60, 90))
    index = torch.tensor([0, 1, 1, 2, *[-1] * 30])
    cache = GradientCache(setting.model.named_parameters(), decay=0.0)
    with GhostScorer(setting.model, cache) as scorer:
        scores = scorer.score(setting.loss(rows, len(rows)), index, step=step)

    full_step = StepModel(setting.optimizer, **options)
    full_cache = GradientCache(setting.model.named_parameters(), decay=0.0)
    if full_step.curvature is not None:
        # The reference rows are 30 of 34: their loss is 30/34 of a mean, and so is its curvature.
        full_step.reference_gradients(setting.model, lambda: setting.loss(range(60, 90), 34))
    scale = 34 / 30 if full_step.curvature is not None else 1.0
    reference = setting.gradients(setting.loss(range(60, 90), 34))
    for unit, rows in units.items():
        candidate = setting.gradients(setting.loss(rows, 34))
        got = scores.step[unit].item()
        if scale == 1.0:
            expected = full_cache.update_and_score(reference, candidate, "step", step=full_step)
            assert got == pytest.approx(expected, rel=1e-9)
            continue
        # φ = φ_flat - second order, and the second order is linear in H.
        flat = StepModel(setting.optimizer, displacement=displacement)
        first = full_cache.update_and_score(reference, candidate, "step", step=flat)
        second = full_cache.update_and_score(reference, candidate, "step", step=full_step) - first
        assert got == pytest.approx(first + scale * second, rel=1e-9)


def test_the_cross_term_is_added_only_where_the_reference_is_taken_now():
    setting = Setting("sgd")
    cache = GradientCache(setting.model.named_parameters(), decay=0.0)
    now = StepModel(setting.optimizer, curvature="diagonal")
    cache.update(now.reference_gradients(setting.model, setting.reference_loss))
    unchanged = now.reference(cache)
    assert all(unchanged[name] is cache[name] for name in cache.names)
    setting.loss(range(15)).backward()
    moved = now.batch_step(cache.parameters)
    expected = {n: cache[n] - now.curvature.times(moved)[n] for n in cache.names}
    torch.testing.assert_close(now.reference(cache), expected)
    ahead = StepModel(setting.optimizer, curvature="diagonal", reference_at="look_ahead")
    ahead.reference_gradients(setting.model, setting.reference_loss)
    assert all(ahead.reference(cache)[name] is cache[name] for name in cache.names)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_extrapolation_aims_one_step_ahead_of_a_steady_course(decay):
    parameter = nn.Parameter(torch.zeros(2).double())
    cache = GradientCache([("w", parameter)], decay=decay)
    step = StepModel(torch.optim.SGD([parameter], lr=1.0), reference_at="extrapolated")
    slope, start = torch.tensor([1.0, -2.0]).double(), torch.tensor([5.0, 7.0]).double()
    for t in range(400):
        cache.update({"w": start + slope * t})
        # Also when not every update is looked at, and some are looked at twice.
        if t % 3 == 0:
            step.reference(cache)
    torch.testing.assert_close(step.reference(cache)["w"], start + slope * 400)
    torch.testing.assert_close(step.reference(cache)["w"], start + slope * 400)


def test_extrapolation_starts_from_the_cache_and_refuses_a_mean():
    parameter = nn.Parameter(torch.zeros(2))
    step = StepModel(torch.optim.SGD([parameter], lr=1.0), reference_at="extrapolated")
    cache = GradientCache([("w", parameter)], decay=0.5)
    cache.update({"w": torch.ones(2)})
    torch.testing.assert_close(step.reference(cache)["w"], cache["w"])
    with pytest.raises(ValueError, match="needs a cache with mode='decay'"):
        step.reference(GradientCache([("w", parameter)], decay=0.5, mode="mean"))


def test_an_extrapolating_model_follows_one_cache():
    parameter = nn.Parameter(torch.zeros(2))
    step = StepModel(torch.optim.SGD([parameter], lr=1.0), reference_at="extrapolated")
    caches = [GradientCache([("w", parameter)], decay=0.5) for _ in range(2)]
    for value, cache in enumerate(caches, start=1):
        cache.update({"w": torch.full((2,), float(value))})
    step.reference(caches[0])
    for _ in range(2):
        with pytest.raises(ValueError, match="make a StepModel for each cache"):
            step.reference(caches[1])
    # The other one has left no trace.
    caches[0].update({"w": torch.full((2,), 3.0)})
    expected = caches[0]["w"] + 2 * (caches[0]["w"] - 0.5)
    torch.testing.assert_close(step.reference(caches[0])["w"], expected)


def test_an_extrapolating_model_starts_anew_with_a_new_cache_or_an_older_state():
    parameter = nn.Parameter(torch.zeros(2))
    step = StepModel(torch.optim.SGD([parameter], lr=1.0), reference_at="extrapolated")

    def updated(value, n_updates=3):
        cache = GradientCache([("w", parameter)], decay=0.5)
        for _ in range(n_updates):
            cache.update({"w": torch.full((2,), value)})
            step.reference(cache)
        return cache

    updated(100.0)
    cache = updated(1.0, n_updates=1)
    assert step.reference(cache)["w"] is cache["w"]
    old = copy.deepcopy(cache.state_dict())
    for _ in range(2):
        cache.update({"w": torch.ones(2)})
        step.reference(cache)
    cache.load_state_dict(old)
    assert step.reference(cache)["w"] is cache["w"]


def test_saved_states_of_another_cache_are_refused():
    parameter = nn.Parameter(torch.zeros(2))
    step, other = (
        StepModel(torch.optim.SGD([parameter], lr=1.0), reference_at="extrapolated")
        for _ in range(2)
    )
    step.reference(GradientCache([("w", parameter)], decay=0.5))
    other.load_state_dict(step.state_dict())
    with pytest.raises(errors.StateMismatchError, match=r"a cache of \['w'\].*this one is of"):
        other.reference(GradientCache([("v", parameter)], decay=0.5))


@pytest.mark.parametrize("reference_at", ["now", "look_ahead"])
@pytest.mark.parametrize("curvature", ["none", "diagonal"])
def test_a_reference_pass_leaves_buffers_and_the_random_state(reference_at, curvature):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.randn(8, 4)
    loss = model(rows).square().sum()
    loss.backward(retain_graph=True)
    step = StepModel(optimizer, reference_at=reference_at, curvature=curvature)
    before = copy.deepcopy(model.state_dict())
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    def reference_loss():
        random.random()
        np.random.rand()  # noqa: NPY002
        model.train()
        return model(rows).square().sum()

    step.reference_gradients(model, reference_loss)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]
    assert (np.random.get_state()[1] == random_states[2]).all()  # noqa: NPY002
    # The graph of before is still good.
    loss.backward()


def test_look_ahead_restores_everything_also_when_the_loss_raises():
    setting = Setting("adamw")
    setting.loss(range(15)).backward()
    before = [t.detach().clone() for p in setting.model.parameters() for t in (p, p.grad)]
    step = StepModel(setting.optimizer, reference_at="look_ahead")
    step.reference_gradients(setting.model, setting.reference_loss)

    def raises():
        raise RuntimeError("no reference image")

    with pytest.raises(RuntimeError, match="no reference image"):
        step.reference_gradients(setting.model, raises)
    after = [t for p in setting.model.parameters() for t in (p, p.grad)]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_stopped_run_goes_on_with_the_same_bits():
    setting = Setting("adamw")
    options = {"reference_at": "extrapolated", "curvature": "kfac", "displacement": "exact"}

    def scores(step, cache, rows):
        cache.update(step.reference_gradients(setting.model, lambda: setting.loss(rows)))
        candidate = setting.gradients(setting.loss([40]))
        return step.effect(step.reference(cache), candidate, setting.parameters)

    step = StepModel(setting.optimizer, **options)
    cache = GradientCache(setting.model.named_parameters(), decay=0.5)
    for rows in (range(60, 70), range(65, 75)):
        scores(step, cache, rows)
    resumed = StepModel(setting.optimizer, **options)
    resumed_cache = GradientCache(setting.model.named_parameters(), decay=0.5)
    resumed.load_state_dict(step.state_dict())
    resumed_cache.load_state_dict(cache.state_dict())
    last = scores(step, cache, range(70, 80))
    assert scores(resumed, resumed_cache, range(70, 80)) == last
    with pytest.raises(errors.StateMismatchError, match="differ in whether they have curvature"):
        StepModel(setting.optimizer, reference_at="extrapolated").load_state_dict(step.state_dict())
    with pytest.raises(errors.StateMismatchError, match="kind='kfac', this one 'diagonal'"):
        StepModel(
            setting.optimizer, reference_at="extrapolated", curvature="diagonal"
        ).load_state_dict(step.state_dict())
    with pytest.raises(
        errors.StateMismatchError, match="reference_at='now', this one 'look_ahead'"
    ):
        StepModel(setting.optimizer, reference_at="look_ahead").load_state_dict(
            StepModel(setting.optimizer).state_dict()
        )


def test_misuse_is_explained():
    setting = Setting("sgd")
    for option, value in (
        ("reference_at", "later"),
        ("curvature", "hessian"),
        ("displacement", "half"),
        ("curvature_decay", 1.0),
    ):
        options = {"curvature": "diagonal", option: value}
        with pytest.raises(ValueError, match=f"`{option}` must"):
            StepModel(setting.optimizer, **options)
    cache = GradientCache(setting.model.named_parameters(), decay=0.0)
    step = StepModel(setting.optimizer, reference_at="look_ahead")
    with (
        GhostScorer(setting.model, cache) as scorer,
        pytest.raises(ValueError, match="pass update_cache=False"),
    ):
        scorer.score(setting.loss([40, 60]), torch.tensor([0, -1]), step=step)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_half_of_the_metric_on_both_sides_is_the_metric(kind):
    setting = Setting(kind)
    step = StepModel(setting.optimizer)
    c, k = (setting.gradients(setting.loss(rows)) for rows in ([40, 41], [50]))
    whole = step.directions(c, setting.parameters)
    half_c, half_k = (step.directions(x, setting.parameters, power=0.5) for x in (c, k))
    for name in c:
        expected = (whole[name] * k[name]).sum()
        torch.testing.assert_close((half_c[name] * half_k[name]).sum(), expected)


def test_nan_in_a_candidate_gives_nan():
    setting = Setting("adamw")
    step = StepModel(setting.optimizer, displacement="exact", curvature="kfac")
    reference = step.reference_gradients(setting.model, setting.reference_loss)
    cache = GradientCache(setting.model.named_parameters(), decay=0.0)
    candidate = {name: torch.full_like(p, math.nan) for name, p in setting.parameters.items()}
    assert math.isnan(cache.update_and_score(reference, candidate, "step", step=step))


@pytest.mark.parametrize("curvature", ["scalar", "diagonal", "kfac"])
@pytest.mark.parametrize("bad", [float("inf"), 1e25])
def test_a_reference_row_that_is_not_finite_leaves_curvature_and_cache_alone(curvature, bad):
    # 1e25 is finite, and so are its gradients in float32, but their squares are not.
    setting = Setting("sgd", dtype=torch.float32)
    step = StepModel(setting.optimizer, curvature=curvature)
    cache = GradientCache(setting.model.named_parameters(), decay=0.5)
    index = torch.tensor([-1] * 10 + [0] * 5 + [1] * 5)
    clean = torch.randn(20, 6)

    def score(rows):
        with GhostScorer(setting.model, cache) as scorer:
            loss = setting.model(rows).square().sum()
            return scorer.score(loss, index, step=step, update_cache=rows is not clean)

    score(torch.randn(20, 6))
    expected = score(clean).contributions("step")
    assert all(math.isfinite(one) for one in expected)
    dirty = clean.clone()
    dirty[3] = bad
    with pytest.raises(errors.NonFiniteGradientError, match="NaN or Inf"):
        score(dirty)
    assert cache.n_updates == 1
    assert score(clean).contributions("step") == expected


@pytest.mark.parametrize("curvature", ["scalar", "diagonal", "kfac"])
def test_reference_gradients_that_are_not_finite_leave_the_curvature_alone(curvature):
    setting = Setting("sgd")
    step = StepModel(setting.optimizer, curvature=curvature)
    step.reference_gradients(setting.model, setting.reference_loss)
    before = step.curvature.times(setting.parameters)
    setting.rows[70] = math.inf
    with pytest.raises(errors.NonFiniteGradientError, match="NaN or Inf"):
        step.reference_gradients(setting.model, setting.reference_loss)
    after = step.curvature.times(setting.parameters)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_step_score_that_is_not_finite_is_never_taken_for_missing_evidence():
    setting = Setting("sgd")
    step = StepModel(setting.optimizer, curvature="scalar")
    cache = GradientCache(setting.model.named_parameters(), decay=0.5)
    state = step.state_dict()
    state["curvature"]["scalar"] = math.nan
    step.load_state_dict(state)
    with GhostScorer(setting.model, cache) as scorer:
        loss = setting.model(torch.randn(4, 6).double()).square().sum()
        scores = scorer.score(loss, torch.tensor([-1, -1, 0, 1]), step=step)
    found = scores.contributions("step")
    assert all(math.isnan(one) for one in found)
    assert not FixedThreshold(0.0).decide(found[0]).trains
