"""Low precision, layers that share parameters, and units whose rows cancel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bsgal_score import REFERENCE, GhostScorer, GradientCache, ops, reference

INDEX = torch.tensor([REFERENCE, REFERENCE, 0, 0, 1, 1])
N_ROWS = len(INDEX)


def by_autograd(model, rows, cache, unit):
    """Return dot product and cosine of a unit's gradient with the cache."""
    loss = model(rows[unit == INDEX]).square().sum()
    found = torch.autograd.grad(loss, model.parameters())
    gradient = dict(zip(cache.names, found, strict=True))
    return cache.dot(gradient), cache.cosine(gradient)


def score(model, rows, **options):
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache, **options) as scorer:
        return scorer.score(model(rows).square().sum(), INDEX), cache


def frozen(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


class Scale(nn.Module):
    """A layer of no supported kind, with a submodule and a buffer."""

    def __init__(self, width):
        super().__init__()
        self.factor = nn.Parameter(torch.rand(width))
        self.mix = nn.Linear(width, width)
        self.register_buffer("offset", torch.rand(width))

    def forward(self, x):
        return self.mix(x * self.factor.exp() + self.offset)


def pictures():
    return torch.randn(N_ROWS, 4, 6, 5)


def vectors():
    return torch.randn(N_ROWS, 8)


LOW = {
    "frozen batch norm": (
        pictures, lambda: nn.Sequential(nn.Conv2d(4, 3, 2), frozen(nn.BatchNorm2d(3))),
    ),
    "batch norm without affine": (
        pictures,
        lambda: nn.Sequential(nn.Conv2d(4, 3, 2), frozen(nn.BatchNorm2d(3, affine=False))),
    ),
    "group norm": (pictures, lambda: nn.Sequential(nn.Conv2d(4, 4, 2), nn.GroupNorm(2, 4))),
    "prelu": (vectors, lambda: nn.Sequential(nn.Linear(8, 8), nn.PReLU(8), nn.Linear(8, 2))),
    "scale": (vectors, lambda: nn.Sequential(nn.Linear(8, 8), Scale(8), nn.Linear(8, 2))),
}  # fmt: skip


@pytest.mark.parametrize("low", ["bfloat16", "autocast"])
@pytest.mark.parametrize("kind", LOW)
def test_low_precision_gives_the_scores_of_rounded_layers(kind, low):
    torch.manual_seed(0)
    make_rows, make_model = LOW[kind]
    rows, model = make_rows(), make_model()
    exact, cache = score(model, rows, other_layers="exact")
    assert exact.contributions()[1] == pytest.approx(by_autograd(model, rows, cache, 1)[1])
    if low == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = score(model, rows, other_layers="exact")
    else:
        found, _ = score(model.bfloat16(), rows.bfloat16(), other_layers="exact")
    # bfloat16 keeps 8 bits: 2**-8 per layer, over a few layers.
    assert found.contributions() == pytest.approx(exact.contributions(), abs=0.05)
    assert found.norm.tolist() == pytest.approx(exact.norm.tolist(), rel=0.1)


class TiedHead(nn.Module):
    """Holds a parameter of another layer under a name of its own."""

    def __init__(self, embedding):
        super().__init__()
        self.weight = embedding.weight

    def forward(self, x):
        return functional.linear(x, self.weight)


class Tied(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = head(self.embedding)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens)))


def linear_head(embedding):
    head = nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    return head


@pytest.mark.parametrize(("head", "mode"), [(TiedHead, "exact"), (linear_head, "error")])
def test_tied_weights_count_once_in_each_place(head, mode):
    torch.manual_seed(0)
    model = Tied(head).double()
    tokens = torch.randint(10, (N_ROWS, 3))
    scores, cache = score(model, tokens, other_layers=mode)
    for unit in (0, 1):
        dot, cosine = by_autograd(model, tokens, cache, unit)
        assert float(scores.dot[unit]) == pytest.approx(dot, rel=1e-9)
        assert scores.contributions()[unit] == pytest.approx(cosine, rel=1e-9)
    assert cache.cosine(gradients_of(model, tokens, REFERENCE)) == pytest.approx(1.0)
    assert scores.coverage == 1.0


def gradients_of(model, rows, unit):
    loss = model(rows[unit == INDEX]).square().sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 4), nn.Conv2d(8, 4, 3, padding=1), nn.LayerNorm(8), nn.GroupNorm(2, 8)]
)
def test_a_shared_head_may_be_called_with_no_rows(layer, norms):
    torch.manual_seed(0)
    shape = (8,) if isinstance(layer, (nn.Linear, nn.LayerNorm)) else (8, 3, 3)
    rows = torch.randn(N_ROWS, *shape)
    cache = GradientCache(layer.named_parameters(), decay=0.0)
    found = []
    for levels in ([rows], [rows, rows[:0]], [rows[:0], rows]):
        indices = [INDEX[: len(level)] for level in levels]
        with GhostScorer(layer, cache) as scorer:
            loss = sum(layer(level).square().sum() for level in levels)
            found.append(scorer.score(loss, {"": indices}, norms=norms).contributions("dot"))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("impl", "dtype"),
    [("torch", torch.float32), ("torch", torch.float64), ("triton", torch.float32)],
)
def test_rows_that_cancel_keep_their_norm(impl, dtype):
    torch.manual_seed(0)
    inputs, grads = torch.randn(6, 300, dtype=dtype), torch.randn(6, 200, dtype=dtype)
    # Of unit 0 all but a little cancels; unit 1 cancels to nothing; unit 2 is ordinary.
    inputs[1], grads[1] = inputs[0], -grads[0] * (1 + 1e-4 * torch.randn(200, dtype=dtype))
    inputs[3], grads[3] = inputs[2], -grads[2]
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    found = ops.ghost_sqnorm(inputs, grads, index, 3, impl=impl)
    expected = reference.ghost_sqnorm(inputs, grads, index, 3)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=0)
    assert float(found[1]) == 0.0


def test_a_unit_whose_rows_cancel_is_no_evidence_and_no_cosine_is_infinite():
    torch.manual_seed(0)
    model = nn.Linear(300, 200, bias=False)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    rows = torch.randn(N_ROWS, 300)
    rows[3], rows[5] = rows[2], rows[4]
    weights = torch.randn(N_ROWS, 200)
    weights[3], weights[5] = -weights[2], -weights[4] * (1 + 1e-4 * torch.randn(200))
    with GhostScorer(model, cache) as scorer:
        scores = scorer.score((model(rows) * weights).sum(), INDEX)
    found = scores.contributions()
    assert found[0] is None
    own = {"weight": weights[4:].double().T @ rows[4:].double()}
    assert found[1] == pytest.approx(cache.cosine({"weight": own["weight"].float()}), abs=1e-3)
    assert all(math.isnan(one) or abs(one) <= 1 for one in scores.cosine.tolist())


def cudnn_flags():
    """Whether cuDNN may use TF32, and whether it has to be reproducible."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic


class ConvolutionWatch(TorchDispatchMode):
    """Note cuDNN's flags at every convolution, forward or backward."""

    def __init__(self):
        super().__init__()
        self.names, self.flags = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if "convolution" in name:
            self.names.add(name)
            self.flags.add(cudnn_flags())
        return function(*args, **(kwargs or {}))


class RunAgain(nn.Module):
    """A convolution of a kind that can only be scored exactly."""

    def __init__(self):
        super().__init__()
        self.logarithms = nn.Parameter(torch.randn(3, 2, 3, 3))

    def forward(self, x):
        return functional.conv2d(x, self.logarithms.exp())


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(2, 3, 3), RunAgain], ids=["linear", "exact"])
def test_no_convolution_of_a_score_uses_tf32(make):
    torch.manual_seed(0)
    model = make()
    cache = GradientCache(model.named_parameters(), decay=0.5)
    assert cudnn_flags() == (True, False)
    with GhostScorer(model, cache, other_layers="exact") as scorer:
        loss = model(torch.randn(4, 2, 5, 5)).square().sum()
        with ConvolutionWatch() as watch:
            scorer.score(loss, torch.tensor([0, 1, REFERENCE, REFERENCE]))
    assert watch.names == {"convolution", "convolution_backward"}
    assert watch.flags == {(False, True)}
    assert cudnn_flags() == (True, False)
