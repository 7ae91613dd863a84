"""Which axis of an input is that of the rows is never guessed where two would fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bsgal_score import REFERENCE, GhostScorer, GradientCache, StepModel
from bsgal_score.errors import UnsupportedLayerError

INDEX = torch.tensor([REFERENCE, REFERENCE, 0, 1, 1])
N_ROWS = len(INDEX)
WIDTH = 8


class Block(nn.Module):
    """A block of a transformer; `batch_axis` is 1 where the sequence comes first."""

    def __init__(self, batch_axis):
        super().__init__()
        self.batch_axis = batch_axis
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).movedim(self.batch_axis, 0).chunk(3, dim=-1)
        attended = torch.softmax(q @ k.mT / WIDTH**0.5, dim=-1) @ v
        return x + self.out(attended.movedim(0, self.batch_axis))


class Model(nn.Module):
    def __init__(self, batch_axis):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, WIDTH)
        self.block = Block(batch_axis)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens):
        return self.head(self.block(self.embedding(tokens)).mean(dim=1 - self.block.batch_axis))


def run(batch_axis, n_tokens, n_rows=N_ROWS, curvature=None, **options):
    """Return scores, and the dot product and norm of unit 1 by autograd."""
    model = Model(batch_axis).double()
    tokens = torch.randint(20, (n_rows, n_tokens))
    tokens = tokens.movedim(0, batch_axis)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    step = None
    if curvature is not None:
        step = StepModel(torch.optim.SGD(model.parameters(), lr=1e-3), curvature=curvature)
    index = INDEX[:n_rows]
    with GhostScorer(model, cache) as scorer:
        scores = scorer.score(model(tokens).square().sum(), index, step=step, **options)
    own = tokens.movedim(batch_axis, 0)[index == 1].movedim(0, batch_axis)
    found = torch.autograd.grad(model(own).square().sum(), model.parameters())
    gradient = dict(zip(cache.names, found, strict=True))
    return scores, cache.dot(gradient), cache.cosine(gradient)


@pytest.mark.parametrize("batch_axis", [0, 1])
@pytest.mark.parametrize("n_tokens", [3, N_ROWS])
def test_scores_along_a_given_axis_equal_those_of_autograd(batch_axis, n_tokens):
    scores, dot, cosine = run(batch_axis, n_tokens, unit_axis=batch_axis)
    assert float(scores.dot[1]) == pytest.approx(dot, rel=1e-9)
    assert scores.contributions()[1] == pytest.approx(cosine, rel=1e-9)
    assert scores.rows.tolist() == [1, 2]


@pytest.mark.parametrize("curvature", ["diagonal", "kfac"])
def test_curvature_follows_the_axis(curvature):
    found = [
        run(axis, N_ROWS, curvature=curvature, unit_axis=axis)[0].contributions("step")
        for axis in (0, 1)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_batch_whose_length_fits_only_the_first_axis_needs_no_word():
    scores, dot, _ = run(0, 3)
    assert float(scores.dot[1]) == pytest.approx(dot, rel=1e-9)


@pytest.mark.parametrize("batch_axis", [0, 1])
def test_an_index_that_fits_two_axes_is_refused(batch_axis):
    message = r"`unit_index` has 5 entries, and 'embedding' saw .* axes \[0, 1\] fit; .*unit_axis=0"
    with pytest.raises(ValueError, match=message):
        run(batch_axis, N_ROWS)


def test_an_index_that_fits_no_row_is_refused_as_ever():
    with pytest.raises(ValueError, match=r"must be int64 of shape \(3,\) for 'embedding'"):
        run(1, 3)
    with pytest.raises(ValueError, match="`unit_axis` is 2 for 'embedding', whose input has axes"):
        run(1, 3, unit_axis=2)


def test_one_row_needs_no_word_where_every_axis_is_one_long():
    scores, _, _ = run(0, 1, n_rows=1)
    assert scores.rows.tolist() == []


def test_decoder_layers_are_not_taken_for_images():
    # A detection transformer puts its classifier on the outputs of all decoder layers.
    model = nn.Linear(WIDTH, 3).double()
    stacked = torch.randn(N_ROWS, N_ROWS, 7, WIDTH).double()
    found = []
    for options in ({}, {"unit_axis": {"": 1}}):
        cache = GradientCache(model.named_parameters(), decay=0.0)
        with GhostScorer(model, cache) as scorer:
            loss = model(stacked).square().sum()
            if not options:
                with pytest.raises(ValueError, match=r"axes of \(5, 5, 7\).* axes \[0, 1\] fit"):
                    scorer.score(loss, INDEX)
            else:
                found.append(scorer.score(loss, INDEX, **options))
    own = torch.autograd.grad(model(stacked[:, INDEX == 1]).square().sum(), model.parameters())
    assert found[0].contributions()[1] == pytest.approx(
        cache.cosine(dict(zip(cache.names, own, strict=True)))
    )


def test_axes_may_be_given_by_module():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)).double()
    rows = torch.randn(N_ROWS, N_ROWS, WIDTH).double()
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache) as scorer:
        loss = model[1](model[0](rows).movedim(0, 1)).square().sum()
        with pytest.raises(ValueError, match="'1' saw an input"):
            scorer.score(loss, INDEX, unit_axis={"0": 1})
        scores = scorer.score(loss, INDEX, unit_axis={"0": 1, "1": 0})
    own = model(rows[:, INDEX == 1]).square().sum()
    gradient = dict(zip(cache.names, torch.autograd.grad(own, model.parameters()), strict=True))
    assert float(scores.dot[1]) == pytest.approx(cache.dot(gradient), rel=1e-9)


def stacked_head(index, **options):
    """Score a head on (layers, batch, queries, features); return scores, and unit 1 by autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))
    rows = torch.randn(3, 2, 4, WIDTH).double()
    cache = GradientCache(model.double().named_parameters(), decay=0.0)
    with GhostScorer(model, cache) as scorer:
        losses = model(rows).square().sum(dim=-1)
        scores = scorer.score(losses.sum(), index, **options)
        start = options.get("unit_axis", 0)
        whole = index.view((1,) * start + index.shape + (1,) * (3 - start - index.dim()))
        own = (losses * (whole == 1)).sum()
        scorer.verify({1: own})
        found = torch.autograd.grad(own, list(model.parameters()))
    return scores, cache.cosine(dict(zip(cache.names, found, strict=True)))


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ((3, 2, 4), {}),
        ((3, 2), {}),
        ((2, 4), {"unit_axis": 1}),
        ((3,), {}),
        ((2,), {"unit_axis": 1}),
    ],
)
def test_units_may_run_along_several_axes(lengths, options):
    index = torch.randint(-2, 3, lengths, generator=torch.Generator().manual_seed(3))
    index.view(-1)[:3] = torch.tensor([REFERENCE, 1, 1][-3:])[: index.numel()]
    scores, cosine = stacked_head(index, **options)
    assert scores.contributions()[1] == pytest.approx(cosine, rel=1e-9)


def test_an_index_of_several_axes_says_where_it_begins():
    index = torch.tensor([[REFERENCE, 0, 1, 1], [0, 1, 0, REFERENCE]])
    with pytest.raises(ValueError, match=r"shape \(3, 2\) for '0', .* 6 rows \(axes \[0, 1\]"):
        stacked_head(index)
    with pytest.raises(ValueError, match=r"`unit_axis` is 2 for '0', .* and `unit_index` has 2"):
        stacked_head(index, unit_axis=2)


def test_axes_that_could_be_exchanged_are_refused():
    # A sequence-first model with as many queries as images.
    model = nn.Linear(WIDTH, 3).double()
    rows = torch.randn(3, 3, WIDTH).double()
    index = torch.tensor([[REFERENCE, 0, 1], [0, 1, 1], [0, 0, 1]])
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache) as scorer:
        loss = model(rows).square().sum()
        with pytest.raises(ValueError, match=r"axes \[\[0, 1\], \[1, 0\]\] fit"):
            scorer.score(loss, index)
        assert scorer.score(loss, index, unit_axis=0).rows.tolist() == [4, 4]


def test_images_as_units_need_no_word_for_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.GroupNorm(1, 5), nn.Conv2d(5, 2, 1))
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache) as scorer:
        scores = scorer.score(model(torch.randn(5, 5, 5, 5)).square().sum(), INDEX)
    assert scores.rows.tolist() == [1, 2]
    assert scores.coverage == 1.0


@pytest.mark.parametrize(
    ("layer", "rows"),
    [
        (nn.Conv2d(N_ROWS, 2, 1), torch.randn(N_ROWS, 4, 4)),
        (nn.Linear(N_ROWS, 2), torch.randn(N_ROWS)),
        (nn.LayerNorm(N_ROWS), torch.randn(N_ROWS)),
    ],
)
def test_an_input_without_an_axis_of_rows_is_refused(layer, rows):
    cache = GradientCache(layer.named_parameters(), decay=0.0)
    with GhostScorer(layer, cache) as scorer:
        loss = layer(rows).square().sum()
        with pytest.raises(UnsupportedLayerError, match="which has no axis of rows"):
            scorer.score(loss, INDEX)


class Embeddings(nn.Module):
    """Words, and positions that all sequences share, as in BERT."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(20, WIDTH), nn.Embedding(16, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])[None]
        return self.norm(self.words(tokens) + self.positions(places))


def test_rows_that_all_units_share_are_named_or_skipped():
    torch.manual_seed(0)
    model = nn.Sequential(Embeddings(), nn.Linear(WIDTH, 2)).double()
    tokens = torch.randint(20, (N_ROWS, 3))
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache) as scorer:
        loss = model(tokens).square().sum()
        with pytest.raises(UnsupportedLayerError, match=r"'0.positions.weight' .* shape \(1, 3\)"):
            scorer.score(loss, INDEX)
    with GhostScorer(model, cache, other_layers="skip") as scorer:
        scores = scorer.score(model(tokens).square().sum(), INDEX)
    assert scorer.names == tuple(n for n in cache.names if n != "0.positions.weight")
    assert "saw one row" in scorer.left_out.pop("0.positions.weight")
    assert scorer.left_out == {}
    chosen = {name: cache.parameters[name] for name in scorer.names}
    own = torch.autograd.grad(model(tokens[INDEX == 1]).square().sum(), list(chosen.values()))
    gradient = dict(zip(chosen, own, strict=True))
    assert scores.contributions()[1] == pytest.approx(cache.cosine(gradient), rel=1e-9)


def test_an_encoder_layer_reports_what_was_scored():
    model = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0)
    cache = GradientCache(model.named_parameters(), decay=0.0)
    with GhostScorer(model, cache, other_layers="skip") as scorer:
        scores = scorer.score(model(torch.randn(N_ROWS, 3, WIDTH)).square().sum(), INDEX)
    assert not any("self_attn" in name for name in scorer.names)
    assert set(scorer.left_out) == set(cache.names) - set(scorer.names)
    assert scorer.left_out["self_attn.in_proj_bias"] == "belongs to a MultiheadAttention"
    n_scored = sum(cache.parameters[name].numel() for name in scorer.names)
    assert scores.coverage == n_scored / sum(p.numel() for p in model.parameters())
