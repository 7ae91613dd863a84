"""What ghost scoring cannot score it names, whichever way the loss came to depend on it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bsgal_score import IGNORED, REFERENCE, GhostScorer, GradientCache, StepModel
from bsgal_score.errors import ChangedInputError, UnsupportedLayerError

N_ROWS = 6
INDEX = torch.tensor([REFERENCE, REFERENCE, 0, 0, 1, IGNORED])


class Halves(nn.Linear):
    """Uses its weight in two pieces."""

    def forward(self, x):
        first, second = self.weight.chunk(2)
        return torch.cat([functional.linear(x, first), functional.linear(x, second)], dim=-1)


class Transposed(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight.t())


class View(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight[:], self.bias)


class Product(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T


class LinearFunction(torch.autograd.Function):
    """Takes its weight as an argument."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.flatten(0, -2).T @ x.flatten(0, -2)


class Opaque(nn.Linear):
    def forward(self, x):
        return LinearFunction.apply(x, self.weight)


class InnerGraph(torch.autograd.Function):
    """Runs a module with a graph of its own, which autograd does not see."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.x = x.detach().requires_grad_()
        with torch.enable_grad():
            ctx.y = module(ctx.x)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx, grad):
        torch.autograd.backward(ctx.y, grad)
        return ctx.x.grad, None


class Hidden(nn.Module):
    def __init__(self, width, _):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return InnerGraph.apply(x, self.inner)


class Reentrant(nn.Module):
    def __init__(self, width, _):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=True)


class Attention(nn.Module):
    def __init__(self, width, _):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        x = x[:, None]
        return self.attention(x, x, x, need_weights=False)[0][:, 0]


class Functional(nn.Module):
    def __init__(self, width, _):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        parameters = {name: p * 1.0 for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, parameters, (x,))


class Query(nn.Module):
    """Learned rows, as the queries of a detection transformer."""

    def __init__(self, width, _):
        super().__init__()
        self.query = nn.Embedding(N_ROWS, width)

    def forward(self, x):
        return x + self.query.weight


class UsedTwice(nn.Linear):
    """Recorded once, and used once in a way that is not."""

    def forward(self, x):
        return super().forward(x) + x @ self.weight.T


OTHER_USES = {
    "chunk": (Halves, ["weight"]),
    "transposed": (Transposed, ["weight"]),
    "view": (View, ["weight"]),
    "matmul": (Product, ["weight"]),
    "function": (Opaque, ["weight"]),
    "inner graph": (Hidden, ["inner.weight", "inner.bias"]),
    "reentrant checkpoint": (Reentrant, ["inner.weight", "inner.bias"]),
    "attention": (Attention, ["attention.out_proj.weight", "attention.out_proj.bias"]),
    "functional_call": (Functional, ["inner.weight", "inner.bias"]),
    "query": (Query, ["query.weight"]),
    "used twice": (UsedTwice, ["weight"]),
}


def make(kind):
    torch.manual_seed(0)
    made, names = OTHER_USES[kind]
    layer = made(8, 8)
    if isinstance(layer, nn.Linear) and kind not in ("view", "used twice"):
        layer.register_parameter("bias", None)
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 3)).double()
    cache = GradientCache(model.named_parameters(), decay=0.0, exclude=excluded(model))
    return model, cache, [f"1.{name}" for name in names]


def excluded(model):
    return ["*in_proj*"] if any("in_proj" in name for name, _ in model.named_parameters()) else []


@pytest.mark.parametrize("other_layers", ["error", "exact"])
@pytest.mark.parametrize("kind", OTHER_USES)
def test_a_parameter_that_was_not_recorded_in_full_is_named(kind, other_layers):
    model, cache, names = make(kind)
    rows = torch.randn(N_ROWS, 8).double()
    with GhostScorer(model, cache, other_layers=other_layers) as scorer:
        loss = model(rows).square().sum()
        with pytest.raises(UnsupportedLayerError) as caught:
            scorer.score(loss, INDEX)
    for name in names:
        assert f"{name!r} cannot be scored: it is used" in str(caught.value)
    for name in cache.names:
        assert (f"{name!r} cannot" in str(caught.value)) == (name in names)
    assert cache.n_updates == 0


# Autograd itself refuses to go through a reentrant checkpoint to what lies before it.
@pytest.mark.parametrize("kind", [one for one in OTHER_USES if "reentrant" not in one])
def test_what_is_skipped_leaves_the_scores_of_the_rest_right(kind):
    model, cache, names = make(kind)
    rows = torch.randn(N_ROWS, 8).double()
    with GhostScorer(model, cache, other_layers="skip") as scorer:
        scores = scorer.score(model(rows).square().sum(), INDEX)
    chosen = {name: cache.parameters[name] for name in scorer.names}
    assert set(names).isdisjoint(chosen)
    loss = model(rows).square().sum(dim=1)[INDEX == 0].sum()
    expected = torch.autograd.grad(loss, list(chosen.values()))
    dot = cache.dot(dict(zip(chosen, expected, strict=True)))
    assert float(scores.dot[0]) == pytest.approx(dot, rel=1e-9)
    total = sum(p.numel() for p in cache.parameters.values())
    assert scores.coverage == pytest.approx(sum(p.numel() for p in chosen.values()) / total)


def test_all_layers_of_other_kinds_are_named_at_once():
    model = nn.Sequential(nn.PReLU(), nn.Linear(8, 8), nn.Bilinear(8, 8, 2, bias=False))
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with pytest.raises(UnsupportedLayerError, match=r"'0.weight' belongs to a PReLU, '2.weight' b"):
        GhostScorer(model, cache)


def test_a_call_before_the_block_is_not_overlooked():
    model = nn.Linear(8, 2)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    before = model(torch.randn(N_ROWS, 8)).square().sum()
    with GhostScorer(model, cache) as scorer:
        loss = model(torch.randn(N_ROWS, 8)).square().sum() + before
        with pytest.raises(UnsupportedLayerError, match="'weight' cannot be scored"):
            scorer.score(loss, INDEX)


def test_uses_that_the_loss_does_not_depend_on_are_no_matter():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    cache = GradientCache(model.named_parameters(), decay=0.0)
    rows = torch.randn(N_ROWS, 8)
    with GhostScorer(model, cache) as scorer:
        loss = model(rows).square().sum()
        model[0].weight.norm()
        with torch.no_grad():
            model(rows)
        checkpoint(model, rows.requires_grad_(), use_reentrant=True)
        assert scorer.score(loss, INDEX).coverage == 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_that_is_not_reentrant_is_scored(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=bias), nn.ReLU(), nn.Linear(8, 2))
    rows = torch.randn(N_ROWS, 8)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        cache = GradientCache(model.named_parameters(), decay=0.0)
        with GhostScorer(model, cache) as scorer:
            found.append(scorer.score(run(rows).square().sum(), INDEX))
    assert found[0].contributions() == found[1].contributions()
    assert found[1].coverage == 1.0


def test_an_in_place_activation_on_a_layer_over_positions_loses_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(inplace=True), nn.Linear(7, 4)).double()
    rows = torch.randn(N_ROWS, 3, 8).double()
    found = []
    for inplace in (True, False):
        model[1].inplace = inplace
        cache = GradientCache(model.named_parameters(), decay=0.0)
        with GhostScorer(model, cache) as scorer:
            found.append(scorer.score(model(rows).square().sum(), INDEX))
    assert found[0].coverage == 1.0
    assert found[0].contributions() == found[1].contributions()


@pytest.mark.parametrize("curvature", ["diagonal", "kfac"])
def test_curvature_leaves_out_layers_that_were_not_recorded_in_full(curvature):
    model, _, names = make("chunk")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = StepModel(optimizer, curvature=curvature)
    rows = torch.randn(N_ROWS, 8).double()
    step.reference_gradients(model, lambda: model(rows).square().mean())
    product = step.curvature.times(dict(model.named_parameters()))
    assert {name for name, one in product.items() if not one.any()} == set(names)


def test_an_input_that_was_changed_after_the_call_is_noticed():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    cache = GradientCache(model.named_parameters(), decay=0.0)

    def residual(x):
        for layer in model:
            # Autocast keeps a copy of x for the backward pass, so that autograd does not mind.
            x += layer(x)
        return x

    with GhostScorer(model, cache) as scorer, torch.autocast("cpu", torch.bfloat16):
        loss = residual(torch.randn(N_ROWS, 8)).square().sum()
        with pytest.raises(ChangedInputError, match=r"\['0.bias', '0.weight'\] was changed in pla"):
            scorer.score(loss, INDEX)
    assert cache.n_updates == 0


def test_an_input_that_no_gradient_needs_may_change():
    model = nn.Linear(8, 8)
    model.weight.requires_grad_(False)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache) as scorer:
        rows = torch.randn(N_ROWS, 8)
        loss = model(rows).square().sum()
        rows.zero_()
        assert scorer.score(loss, INDEX).coverage == 1.0


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_a_copied_module_is_given_as_the_reason(copied):
    model = nn.Linear(8, 2)
    scorer = GhostScorer(model, GradientCache(model.named_parameters(), decay=0.0))
    other = copied(model)
    with scorer:
        loss = other(torch.randn(N_ROWS, 8)).sum()
        with pytest.raises(ValueError, match=r"1 calls of layers did run .* copied \(deepcopy\)"):
            scorer.score(loss, INDEX)


def test_model_and_scorer_may_be_copied_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU()).double()
    cache = GradientCache(model.named_parameters(), decay=0.5)
    scorer = GhostScorer(model, cache, other_layers="exact")
    rows = torch.randn(N_ROWS, 8).double()
    found = []
    for own_model, own_scorer in (copy.deepcopy((model, scorer)), (model, scorer)):
        with own_scorer:
            found.append(own_scorer.score(own_model(rows).square().sum(), INDEX))
    assert found[0].contributions() == found[1].contributions()
    assert found[0].coverage == 1.0


def test_an_attention_is_named_with_its_last_layer():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with pytest.raises(UnsupportedLayerError) as caught:
        GhostScorer(model, cache)
    for name in cache.names:
        is_named = f"{name!r} belongs to a MultiheadAttention" in str(caught.value)
        assert is_named == name.startswith("self_attn")
    assert "self_attn.out_proj.weight" not in GhostScorer(model, cache, other_layers="skip").names


def test_where_all_is_skipped_the_reasons_are_given():
    model = Halves(8, 8, bias=False)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache, other_layers="skip") as scorer:
        loss = model(torch.randn(N_ROWS, 8)).sum()
        with pytest.raises(UnsupportedLayerError, match="all was skipped: 'weight' cannot be sc"):
            scorer.score(loss, INDEX)


def test_a_loss_from_before_the_block_is_given_as_the_reason():
    model = nn.Linear(8, 2)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    rows = torch.randn(N_ROWS, 8)
    before = model(rows).sum()
    with (
        GhostScorer(model, cache) as scorer,
        pytest.raises(ValueError, match=r"depend on \['bias', 'weight'\], by calls before"),
    ):
        scorer.score(before, INDEX)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_loss_scale_that_nothing_can_be_divided_by_leaves_the_cache(scale):
    layer = nn.Linear(8, 4)
    cache = GradientCache(layer.named_parameters(), decay=0.5)
    cache.update({name: torch.ones_like(p) for name, p in layer.named_parameters()})
    before = {name: cache[name].clone() for name in cache.names}
    scorer = GhostScorer(layer, cache)
    with scorer:
        loss = layer(torch.randn(N_ROWS, 8)).square().sum()
        with pytest.raises(ValueError, match="`loss_scale` must be finite and positive"):
            scorer.score(loss, INDEX, loss_scale=scale)
    for name in cache.names:
        torch.testing.assert_close(cache[name], before[name], rtol=0, atol=0)


class Returning(nn.Module):
    """Calls a module with more than the rows, or with none."""

    def __init__(self, inner, call):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x):
        return self.call(self.inner, x)


@pytest.mark.parametrize(
    ("inner", "call", "cause"),
    [
        (nn.LSTMCell(8, 8), lambda m, x: m(x)[0], r"LSTMCell returned tuple"),
        (nn.Bilinear(8, 8, 4), lambda m, x: m(x, x), r"Bilinear was called with a second tensor"),
        (nn.GRUCell(8, 8), lambda m, x: m(x, x), r"GRUCell was called with a second tensor"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)),
            lambda m, x: m(x),
            r"was not called with a tensor of rows first",
        ),
    ],
    ids=["lstm cell", "bilinear", "gru cell", "weight norm"],
)
def test_a_module_that_cannot_be_run_for_some_rows_is_named_with_the_cause(inner, call, cause):
    model = Returning(inner, call)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    scorer = GhostScorer(model, cache, other_layers="exact")
    with scorer, pytest.raises(UnsupportedLayerError, match=rf"'inner\..*{cause}"):
        scorer.score(model(torch.randn(N_ROWS, 8)).sum(), INDEX)
