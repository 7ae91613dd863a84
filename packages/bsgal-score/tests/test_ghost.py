from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from bsgal_score import IGNORED, REFERENCE, GhostScorer, GradientCache, StepModel
from bsgal_score.errors import (
    LiveBatchNormError,
    NonFiniteGradientError,
    ReboundParameterError,
    UnsupportedLayerError,
)

N_ROWS, N_UNITS = 12, 3
INDEX = torch.tensor([0, 1, REFERENCE, 0, IGNORED, 1, REFERENCE, 1, REFERENCE, 0, 0, IGNORED])


class Scale(nn.Module):
    """A layer of no supported kind."""

    def __init__(self, width):
        super().__init__()
        self.factor = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return x * self.factor.exp()


class WrappedConv(nn.Conv2d):
    """Convolution, normalisation and activation in one module, as detection libraries have it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = nn.GroupNorm(2, self.out_channels)

    def forward(self, x):
        x = functional.conv2d(
            x, self.weight, self.bias, self.stride, padding=self.padding, groups=self.groups
        )
        return functional.relu_(self.norm(x))


class Cascade(nn.Module):
    """Calls one layer several times."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 8)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.shared(x))
        return x


class Tokens(nn.Module):
    """A class token and position embeddings, one for all images, as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 4, 8))
        self.offset = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.offset + torch.tanh(x + self.positions))


def frozen_norm(width):
    norm = nn.BatchNorm2d(width)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


def tokens(n):
    return torch.randint(0, 10, (n, 5))


def vectors(n):
    return torch.randn(n, 8)


def pictures(n):
    return torch.randn(n, 4, 6, 5)


HEADS = {
    "linear": (
        vectors, lambda: nn.Sequential(nn.Linear(8, 7), nn.ReLU(inplace=True), nn.Linear(7, 4)),
    ),
    "linear without bias": (vectors, lambda: nn.Linear(8, 4, bias=False)),
    "linear over positions": (lambda n: torch.randn(n, 3, 8), lambda: nn.Linear(8, 4)),
    "many positions": (lambda n: torch.randn(n, 9, 2), lambda: nn.Linear(2, 2)),
    "conv": (pictures, lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1)),
    "dilated grouped conv": (pictures, lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding=2)),
    "reflecting conv": (pictures, lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")),
    "same conv": (pictures, lambda: nn.Conv2d(4, 2, 3, padding="same", bias=False)),
    "transposed conv": (
        pictures,
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    ),
    "mask head": (
        pictures,
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(),
            nn.Conv2d(4, 3, 1),
        ),
    ),
    "wrapped conv": (pictures, lambda: nn.Sequential(WrappedConv(4, 6, 3), nn.Conv2d(6, 2, 1))),
    "group norm": (pictures, lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 2))),
    "layer norm": (vectors, lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))),
    "rms norm": (vectors, lambda: nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 3))),
    "rms norm over positions": (lambda n: torch.randn(n, 3, 8), lambda: nn.RMSNorm((3, 8), 1e-3)),
    "class token": (lambda n: torch.randn(n, 3, 8), Tokens),
    "frozen batch norm": (pictures, lambda: nn.Sequential(nn.Conv2d(4, 3, 2), frozen_norm(3))),
    "embedding": (
        tokens, lambda: nn.Sequential(nn.Embedding(10, 6, padding_idx=1), nn.Linear(6, 2)),
    ),
    "several calls": (vectors, Cascade),
}  # fmt: skip


def make(head):
    """Return rows, a head in float64 on a trunk, and a target to regress to."""
    torch.manual_seed(0)
    make_rows, make_head = HEADS[head]
    rows, model = make_rows(N_ROWS), make_head().double()
    rows = rows.double() if rows.is_floating_point() else rows
    return rows, model, torch.randn_like(model(rows).detach())


def losses(model, rows, targets):
    """Return one loss per row, with rows that do not influence each other."""
    return (model(rows) - targets).square().flatten(1).sum(dim=1) / N_ROWS


def autograd_scores(model, rows, targets, cache, index=INDEX, n_units=N_UNITS):
    """Score unit by unit with plain autograd: the definition."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    per_row = losses(model, rows, targets)

    def gradient(unit):
        total = per_row[index == unit].sum()
        found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    cache.update(gradient(REFERENCE))
    dots, norms, cosines = [], [], []
    for unit in range(n_units):
        g = gradient(unit) if (index == unit).any() else {}
        dots.append(cache.dot(g))
        norms.append(math.sqrt(sum(float(x.square().sum()) for x in g.values())))
        cosines.append(cache.cosine(g))
    return dots, norms, cosines


def assert_same(found, expected, **tolerance):
    """Compare contributions, None included."""
    assert [x is None for x in found] == [x is None for x in expected]
    numbers = [x for x in expected if x is not None]
    assert [x for x in found if x is not None] == pytest.approx(numbers, **tolerance)


def make_cache(model, **options):
    return GradientCache(model.named_parameters(), decay=0.5, **options)


@pytest.mark.parametrize("head", HEADS)
def test_scores_equal_a_loop_of_autograd_calls(head):
    rows, model, targets = make(head)
    by_autograd, by_ghost = make_cache(model), make_cache(model)
    with GhostScorer(model, by_ghost) as scorer:
        scores = scorer.score(losses(model, rows, targets).sum(), INDEX, n_units=N_UNITS)
    dots, norms, cosines = autograd_scores(model, rows, targets, by_autograd)
    for name in by_autograd.names:
        torch.testing.assert_close(by_ghost[name], by_autograd[name], rtol=1e-9, atol=1e-12)
    assert scores.dot.tolist() == pytest.approx(dots, rel=1e-9)
    assert scores.norm.tolist() == pytest.approx(norms, rel=1e-9)
    assert_same(scores.contributions(), cosines, rel=1e-9)
    assert scores.rows.tolist() == [4, 3, 0]
    assert scores.coverage == 1.0
    assert scores.contributions()[2] is None


@pytest.mark.parametrize("head", HEADS)
def test_dots_without_norms_are_the_same(head):
    rows, model, targets = make(head)
    cache = make_cache(model)
    scorer = GhostScorer(model, cache)
    with scorer:
        loss = losses(model, rows, targets).sum()
        with_norms = scorer.score(loss, INDEX)
        without = scorer.score(loss, INDEX, norms=False, update_cache=False)
    torch.testing.assert_close(without.dot, with_norms.dot, rtol=1e-9, atol=1e-12)
    assert without.contributions("dot") == pytest.approx(without.dot.tolist())
    assert without.norm is None
    with pytest.raises(ValueError, match="norms=True"):
        without.contributions("cosine")


def test_other_layers_are_scored_exactly_on_request():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5), Scale(5), nn.PReLU(5), nn.Linear(5, 2)).double()
    rows, targets = torch.randn(N_ROWS, 8).double(), torch.randn(N_ROWS, 2).double()
    by_autograd, by_ghost = make_cache(model), make_cache(model)
    with GhostScorer(model, by_ghost, other_layers="exact") as scorer:
        scores = scorer.score(losses(model, rows, targets).sum(), INDEX, n_units=N_UNITS)
    _, _, cosines = autograd_scores(model, rows, targets, by_autograd)
    assert_same(scores.contributions(), cosines, rel=1e-9)
    assert scores.coverage == 1.0


def test_other_layers_raise_by_default_and_can_be_skipped():
    model = nn.Sequential(nn.Linear(8, 5), Scale(5))
    cache = make_cache(model)
    with pytest.raises(UnsupportedLayerError, match=r"'1\.factor' belongs to a Scale"):
        GhostScorer(model, cache)
    with GhostScorer(model, cache, other_layers="skip") as scorer:
        scores = scorer.score(model(torch.randn(N_ROWS, 8)).sum(), INDEX)
    assert scores.coverage == pytest.approx(45 / 50)
    with pytest.raises(ValueError, match="`other_layers` must be"):
        GhostScorer(model, cache, other_layers="ignore")


def test_a_parameter_that_is_used_in_another_way_is_named():
    class Reparametrised(nn.Linear):
        def forward(self, x):
            return functional.linear(x, functional.normalize(self.weight), self.bias)

    model = Reparametrised(8, 4)
    with GhostScorer(model, make_cache(model)) as scorer:
        loss = model(torch.randn(N_ROWS, 8)).sum()
        with pytest.raises(UnsupportedLayerError, match="'weight' cannot be scored: it is used by"):
            scorer.score(loss, INDEX)


def test_shared_weights_with_different_biases_are_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    with GhostScorer(model, make_cache(model)) as scorer:
        loss = model(torch.randn(N_ROWS, 8)).sum()
        with pytest.raises(UnsupportedLayerError, match=r"'0\.weight' is shared"):
            scorer.score(loss, INDEX)


def test_layers_may_have_rows_of_their_own():
    torch.manual_seed(0)
    model = nn.ModuleDict({"box": nn.Linear(8, 3), "mask": nn.Linear(8, 2)}).double()
    rows = torch.randn(N_ROWS, 8).double()
    foreground = torch.tensor([0, 1, 2, 5])
    cache = make_cache(model)
    with GhostScorer(model, cache) as scorer:
        loss = model["box"](rows).square().sum() + model["mask"](rows[foreground]).square().sum()
        index = {"box": INDEX, "mask": INDEX[foreground]}
        scores = scorer.score(loss, index)
        with pytest.raises(ValueError, match=r"shape \(4,\) for 'mask', which saw 4 rows"):
            scorer.score(loss, INDEX)
        with pytest.raises(ValueError, match=r"no entry for 'mask'; its keys are \['box'\]"):
            scorer.score(loss, {"box": INDEX})
    unit = model["box"](rows[INDEX == 1]).square().sum()
    unit = unit + model["mask"](rows[foreground][INDEX[foreground] == 1]).square().sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(unit, parameters), strict=True))
    assert float(scores.dot[1]) == pytest.approx(cache.dot(gradient), rel=1e-9)


def test_every_call_of_a_module_may_have_an_index_of_its_own():
    model = nn.Linear(8, 2).double()
    levels = [torch.randn(n, 8).double() for n in (3, 5)]
    indices = [torch.tensor([0, 1, -1]), torch.tensor([1, 1, 0, -1, -2])]
    cache = make_cache(model)
    with GhostScorer(model, cache) as scorer:
        loss = sum(model(level).square().sum() for level in levels)
        scores = scorer.score(loss, {"": indices})
        with pytest.raises(ValueError, match="lists 1 calls of '', which was called more often"):
            scorer.score(loss, {"": indices[:1]})
    rows = torch.cat(levels)[torch.cat(indices) == 1]
    gradient = torch.autograd.grad(model(rows).square().sum(), model.parameters())
    expected = cache.dot(dict(zip(("weight", "bias"), gradient, strict=True)))
    assert float(scores.dot[1]) == pytest.approx(expected, rel=1e-9)


def test_the_backward_pass_does_not_enter_the_trunk():
    class Trap(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise AssertionError("the trunk was entered")

    trunk, head = nn.Linear(8, 8), nn.Linear(8, 2)
    model = nn.Sequential(trunk, head)
    cache = make_cache(model, exclude=["0.*"])
    with GhostScorer(head, cache) as scorer:
        loss = head(Trap.apply(trunk(torch.randn(N_ROWS, 8)))).square().sum()
        scorer.score(loss, INDEX)
    with pytest.raises(AssertionError, match="the trunk was entered"):
        loss.backward()


def test_the_training_step_can_follow():
    rows, model, targets = make("mask head")
    with GhostScorer(model, make_cache(model)) as scorer:
        loss = losses(model, rows, targets).sum()
        scorer.score(loss, INDEX)
    loss.backward()
    scored = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    losses(model, rows, targets).sum().backward()
    torch.testing.assert_close(scored, [p.grad for p in model.parameters()], rtol=0, atol=0)


def test_a_scaled_loss_is_unscaled():
    rows, model, targets = make("linear")
    plain, scaled = make_cache(model), make_cache(model)
    for cache, scale in ((plain, 1.0), (scaled, 1024.0)):
        with GhostScorer(model, cache) as scorer:
            loss = losses(model, rows, targets).sum() * scale
            scores = scorer.score(loss, INDEX, loss_scale=scale)
    expected = autograd_scores(model, rows, targets, make_cache(model))[0]
    assert scores.dot[:2].tolist() == pytest.approx(expected[:2], rel=1e-9)


@pytest.mark.parametrize("head", ["linear", "mask head", "group norm"])
def test_scores_under_autocast_are_those_of_rounded_layers(head):
    rows, model, targets = make(head)
    rows, model, targets = rows.float(), model.float(), targets.float()
    exact, cache = make_cache(model), make_cache(model)
    with GhostScorer(model, cache) as scorer, torch.autocast("cpu", torch.bfloat16):
        scores = scorer.score(losses(model, rows, targets).sum(), INDEX, n_units=N_UNITS)
    _, norms, cosines = autograd_scores(model, rows, targets, exact)
    # bfloat16 keeps 8 bits: 2**-8 per layer, over four layers and the cache.
    assert scores.norm.tolist() == pytest.approx(norms, rel=0.05)
    assert scores.contributions()[:2] == pytest.approx(cosines[:2], abs=0.05)


def test_live_batch_norm_is_refused_with_the_reason():
    model = nn.Sequential(nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3))
    with pytest.raises(LiveBatchNormError, match="BatchNorm2d normalises by its batch"):
        GhostScorer(model, make_cache(model)).__enter__()


def test_a_nonfinite_unit_harms_no_other_and_a_nonfinite_reference_raises():
    rows, model, targets = make("mask head")
    cache = make_cache(model)
    scorer = GhostScorer(model, cache)
    with scorer:
        clean = scorer.score(losses(model, rows, targets).sum(), INDEX)
    before = {name: cache[name].clone() for name in cache.names}
    rows[1] = math.nan
    with scorer:
        loss = losses(model, rows, targets).sum()
        scores = scorer.score(loss, INDEX, update_cache=False)
    assert scores.contributions()[0] == pytest.approx(clean.contributions()[0])
    assert math.isnan(scores.contributions()[1])
    rows[2] = math.inf
    with scorer:
        loss = losses(model, rows, targets).sum()
        with pytest.raises(NonFiniteGradientError, match="NaN or Inf"):
            scorer.score(loss, INDEX)
    assert all(torch.equal(before[name], cache[name]) for name in cache.names)


def test_without_reference_rows_the_cache_is_left_alone():
    rows, model, targets = make("linear")
    cache = make_cache(model)
    with GhostScorer(model, cache) as scorer:
        scores = scorer.score(losses(model, rows, targets).sum(), INDEX.clamp(min=0))
    assert cache.n_updates == 0
    assert scores.contributions() == [None, None]


def test_without_units_only_the_cache_is_fed():
    rows, model, targets = make("linear")
    cache = make_cache(model)
    with GhostScorer(model, cache) as scorer:
        scores = scorer.score(losses(model, rows, targets).sum(), INDEX.clamp(max=-1))
    assert cache.n_updates == 1
    assert scores.contributions() == []


def test_excluded_parameters_do_not_change_the_score():
    rows, model, targets = make("linear")
    by_ghost, by_autograd = (make_cache(model, exclude=["0.weight", "2.bias"]) for _ in range(2))
    with GhostScorer(model, by_ghost) as scorer:
        scores = scorer.score(losses(model, rows, targets).sum(), INDEX, n_units=N_UNITS)
    assert scorer.names == ("0.bias", "2.weight")
    expected = autograd_scores(model, rows, targets, by_autograd)[2]
    assert_same(scores.contributions(), expected, rel=1e-9)


def test_a_replaced_parameter_is_noticed():
    model = nn.Linear(8, 2)
    scorer = GhostScorer(model, make_cache(model))
    model.weight = nn.Parameter(torch.zeros(2, 8))
    with pytest.raises(ReboundParameterError, match="'weight' was replaced"):
        scorer.__enter__()


def test_misuse_is_explained():
    model = nn.Linear(8, 2)
    scorer = GhostScorer(model, make_cache(model))
    rows = torch.randn(N_ROWS, 8)
    with pytest.raises(ValueError, match="no call was recorded"):
        scorer.score(model(rows).sum(), INDEX)
    with scorer:
        loss = model(rows).sum()
        with pytest.raises(ValueError, match="`n_units` is 1, but `unit_index` goes up to 1"):
            scorer.score(loss, INDEX, n_units=1)
        with pytest.raises(ValueError, match="`loss` must be a scalar that requires grad"):
            scorer.score(loss.detach(), INDEX)
    with pytest.raises(ValueError, match="no parameter of `modules` is in the cache"):
        GhostScorer(nn.Linear(2, 2), make_cache(model))


def test_activations_are_let_go_after_the_block():
    model = nn.Linear(8, 2)
    scorer = GhostScorer(model, make_cache(model))
    with scorer:
        scorer.score(model(torch.randn(N_ROWS, 8)).sum(), INDEX)
    assert scorer._recorder.calls == []
    model(torch.randn(N_ROWS, 8))
    assert scorer._recorder.calls == []


def train_by_selection(score, n_steps=100):
    """Train on what is accepted; return the verdicts and the loss of every step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cache = make_cache(model)
    scorer = GhostScorer(model, cache)
    index = torch.tensor([REFERENCE] * 6 + [0, 0, 1, 2, 2, 3])
    trace = []
    for _ in range(n_steps):
        rows, targets = torch.randn(N_ROWS, 8).double(), torch.randn(N_ROWS, 3).double()
        if score == "ghost":
            with scorer:
                per_row = losses(model, rows, targets)
                found = scorer.score(per_row.sum(), index).contributions()
        else:
            found = autograd_scores(model, rows, targets, cache, index, 4)[2]
            per_row = losses(model, rows, targets)
        accepted = torch.tensor([True] * 6 + [found[unit] >= 0 for unit in index[6:]])
        optimizer.zero_grad()
        loss = per_row[accepted].sum()
        loss.backward()
        optimizer.step()
        trace.append((accepted.tolist(), loss.item()))
    return trace


def test_training_by_ghost_scores_equals_training_by_autograd_and_repeats_bit_for_bit():
    ghost, again, autograd = (train_by_selection(how) for how in ("ghost", "ghost", "autograd"))
    assert ghost == again
    assert [verdicts for verdicts, _ in ghost] == [verdicts for verdicts, _ in autograd]
    assert [loss for _, loss in ghost] == pytest.approx([loss for _, loss in autograd], rel=1e-9)
    assert len({tuple(verdicts) for verdicts, _ in ghost}) > 4


def test_scores_take_no_memory_of_the_size_of_a_gradient_per_unit():
    model = nn.Linear(2000, 300)
    cache = make_cache(model)
    rows = torch.randn(256, 2000)
    index = torch.arange(256) // 2
    index[::7] = REFERENCE
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.numel())
            return out

    with GhostScorer(model, cache) as scorer:
        loss = model(rows).square().mean()
        scorer.score(loss, index.clamp(max=REFERENCE))
    with GhostScorer(model, cache) as scorer:
        loss = model(rows).square().mean()
        with Watch():
            scorer.score(loss, index, update_cache=False)
    # Nothing is larger than the weights or the input; 128 gradients would be.
    assert max(largest) <= max(model.weight.numel(), rows.numel())


@pytest.mark.parametrize("norms", [True, False])
def test_an_empty_cache_is_no_evidence_in_every_form(norms):
    model = nn.Linear(8, 2)
    cache = make_cache(model)
    step = StepModel(torch.optim.SGD(model.parameters(), lr=0.1))
    with GhostScorer(model, cache) as scorer:
        loss = model(torch.randn(N_ROWS, 8)).square().sum()
        scores = scorer.score(loss, INDEX.clamp(min=0), norms=norms, step=step)
    gradient = {"weight": torch.ones(2, 8), "bias": torch.ones(2)}
    for form in ("dot", "step", "cosine") if norms else ("dot", "step"):
        assert scores.contributions(form) == [None, None]
        chosen = step if form == "step" else None
        assert make_cache(model).update_and_score({}, gradient, form, step=chosen) is None


@pytest.mark.parametrize("norms", [True, False])
def test_a_unit_without_gradient_is_no_evidence_in_every_form(norms):
    model = nn.Linear(8, 2)
    cache = make_cache(model)
    step = StepModel(torch.optim.SGD(model.parameters(), lr=0.1))
    with GhostScorer(model, cache) as scorer:
        counted = (INDEX != 1).float()[:, None]
        loss = (model(torch.randn(N_ROWS, 8)) * counted).square().sum()
        scores = scorer.score(loss, INDEX, norms=norms, step=step)
    for form in ("dot", "step", "cosine") if norms else ("dot", "step"):
        found = scores.contributions(form)
        assert isinstance(found[0], float)
        assert found[1] is None


@pytest.mark.parametrize("options", [{}, {"curvature": "kfac"}, {"displacement": "exact"}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_that_moves_nothing_is_no_evidence_on_every_path(kind, options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2)).double()
    rows = torch.randn(N_ROWS, 8).double()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1].parameters()}]
    optimizer = kind(groups, lr=0.0)
    model(rows).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    step = StepModel(optimizer, **options)

    def contributions():
        by_ghost, by_gradients = make_cache(model), make_cache(model)
        per_row = model(rows).square().sum(dim=1)
        real, candidate = (
            dict(
                zip(
                    by_ghost.names,
                    torch.autograd.grad(
                        per_row[unit == INDEX].sum(), model.parameters(), retain_graph=True
                    ),
                    strict=True,
                )
            )
            for unit in (REFERENCE, 1)
        )
        with GhostScorer(model, by_ghost) as scorer:
            loss = model(rows).square().sum()
            ghost = scorer.score(loss, INDEX, step=step).contributions("step")[1]
        return ghost, by_gradients.update_and_score(real, candidate, "step", step=step)

    assert contributions() == (None, None)
    optimizer.param_groups[1]["lr"] = 0.1
    ghost, full = contributions()
    assert ghost == pytest.approx(full)
