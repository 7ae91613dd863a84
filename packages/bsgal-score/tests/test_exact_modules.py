"""Attention and recurrence, which know where their rows are and return several tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bsgal_score import IGNORED, REFERENCE, GhostScorer, GradientCache
from bsgal_score.errors import UnsupportedLayerError

INDEX = torch.tensor([REFERENCE, 0, 0, 1, IGNORED])
N_ROWS, WIDTH, LENGTH = len(INDEX), 8, 4


class Attention(nn.Module):
    def __init__(self, batch_first, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first, dropout=0.3)
        self.head = nn.Linear(WIDTH, 3)
        self.batch_axis = 0 if batch_first else 1
        self.need_weights = need_weights
        self.eval()

    def forward(self, x):
        padding = torch.zeros(N_ROWS, LENGTH, dtype=torch.bool)
        padding[:, -1] = True
        rows = x.movedim(0, self.batch_axis)
        causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        out, weights = self.attention(
            rows, rows.detach().flip(-1), value=rows, key_padding_mask=padding[: len(x)],
            attn_mask=causal, need_weights=self.need_weights,
        )  # fmt: skip
        found = self.head(out.movedim(self.batch_axis, 0)).square().sum(dim=(1, 2))
        return found if weights is None else found + weights.square().sum(dim=(1, 2))


class Recurrence(nn.Module):
    def __init__(self, kind, batch_first, with_state):
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, num_layers=2, batch_first=batch_first)
        self.batch_axis = 0 if batch_first else 1
        self.with_state = with_state

    def forward(self, x):
        given = [x.movedim(0, self.batch_axis)]
        if self.with_state:
            state = x.mean(dim=1).expand(2, -1, -1)
            given.append((state, state.tanh()) if isinstance(self.layer, nn.LSTM) else state)
        out, state = self.layer(*given)
        last = state[1] if isinstance(state, tuple) else state
        return out.movedim(self.batch_axis, 0)[:, -1].sum(dim=1) + last.square().sum(dim=(0, 2))


MODELS = {
    f"attention, {batch_first=}, {need_weights=}": lambda b=batch_first, n=need_weights: Attention(
        b, n
    )
    for batch_first in (True, False)
    for need_weights in (True, False)
} | {
    f"{kind.__name__}, {batch_first=}, {with_state=}": lambda k=kind, b=batch_first, w=with_state: (
        Recurrence(k, b, w)
    )
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for batch_first, with_state in ((True, False), (False, True))
}


@pytest.mark.parametrize("kind", MODELS)
def test_scores_equal_those_of_autograd(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().double()
    rows = torch.randn(N_ROWS, LENGTH, WIDTH).double()
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache, other_layers="exact") as scorer:
        losses = model(rows)
        scores = scorer.score(losses.sum(), INDEX)
        scorer.verify({0: losses[1:3].sum(), 1: losses[3]})
        found = torch.autograd.grad(losses[3], list(model.parameters()), retain_graph=True)
        scorer.reject([1])
    assert scores.coverage == 1.0
    own = dict(zip(cache.names, found, strict=True))
    assert scores.contributions()[1] == pytest.approx(cache.cosine(own), rel=1e-9)
    losses.sum().backward()
    for parameter, without in zip(
        model.parameters(),
        torch.autograd.grad(model(rows)[INDEX != 1].sum(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(parameter.grad, without, rtol=1e-6, atol=1e-12)


def test_what_a_module_returns_is_unchanged():
    torch.manual_seed(0)
    layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    rows = torch.randn(N_ROWS, LENGTH, WIDTH)
    expected = layer(rows)
    cache = GradientCache(layer.named_parameters(), decay=0.0)
    with GhostScorer(layer, cache, other_layers="exact"):
        found = layer(rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layer", "rows", "reason"),
    [
        (nn.MultiheadAttention(WIDTH, 2, dropout=0.5), 3, "drops out at random"),
        (nn.LSTM(WIDTH, WIDTH, 2, dropout=0.5), 3, "drops out at random"),
        (nn.MultiheadAttention(WIDTH, 2), 2, "without an axis of rows"),
        (nn.GRU(WIDTH, WIDTH), 2, "not called with a tensor of rows"),
    ],
)
def test_calls_that_cannot_be_made_again_are_refused(layer, rows, reason):
    cache = GradientCache(layer.named_parameters(), decay=0.0)
    rows = torch.randn(*(N_ROWS, LENGTH, WIDTH)[-rows:])
    given = [rows] * 3 if isinstance(layer, nn.MultiheadAttention) else [rows]
    with (
        GhostScorer(layer, cache, other_layers="exact"),
        pytest.raises(UnsupportedLayerError, match=reason),
    ):
        layer(*given)


def test_packed_sequences_are_refused():
    layer = nn.GRU(WIDTH, WIDTH)
    cache = GradientCache(layer.named_parameters(), decay=0.0)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, WIDTH), torch.randn(2, WIDTH)])
    with (
        GhostScorer(layer, cache, other_layers="exact"),
        pytest.raises(UnsupportedLayerError, match="was called with a PackedSequence"),
    ):
        layer(packed)
