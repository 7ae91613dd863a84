"""`.grad` after a rejection is that of the loss without the units' terms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bsgal_score import IGNORED, REFERENCE, GhostScorer, GradientCache
from bsgal_score.errors import UnsupportedLayerError

INDEX = torch.tensor([REFERENCE, 0, 0, 1, 2, IGNORED])


def grads(model):
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return {name: None if g is None else g.clone() for name, g in found.items()}


def assert_equal_grads(model, loss_without):
    """Compare `.grad` with the gradients of a loss without the units."""
    found = grads(model)
    loss_without.backward()
    for name, expected in grads(model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-12, msg=name)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(16, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3),
    ).double()  # fmt: skip


def losses_of(model, rows):
    return functional.cross_entropy(model(rows), torch.arange(len(rows)) % 3, reduction="none")


def scorer_of(model, *patterns, **options):
    cache = GradientCache(model.named_parameters(), decay=0.9, exclude=patterns)
    return GhostScorer(model, cache, **options)


@pytest.mark.parametrize("units", [[], [1], [0, 2], torch.tensor([0, 1, 2])])
def test_a_backward_pass_learns_nothing_from_rejected_units(classifier, units):
    rows = torch.randn(6, 2, 4, 4).double()
    with scorer_of(classifier) as scorer:
        loss = losses_of(classifier, rows).mean()
        scorer.score(loss, INDEX)
        scorer.reject(units)
    loss.backward()
    kept = ~torch.isin(INDEX, torch.as_tensor(units, dtype=torch.int64))
    assert_equal_grads(classifier, (losses_of(classifier, rows) * kept).sum() / 6)


def test_rejections_add_up_and_are_gone_with_the_pass(classifier):
    rows = torch.randn(6, 2, 4, 4).double()
    with scorer_of(classifier) as scorer:
        loss = losses_of(classifier, rows).mean()
        scorer.score(loss, INDEX)
        scorer.reject([0])
        scorer.reject([1])
    loss.backward()
    kept = ~torch.isin(INDEX, torch.tensor([0, 1]))
    assert_equal_grads(classifier, (losses_of(classifier, rows) * kept).sum() / 6)
    losses_of(classifier, rows).mean().backward()
    assert_equal_grads(classifier, losses_of(classifier, rows).mean())


@pytest.mark.parametrize("scored_part", ["7.*", "4.*"])
def test_what_is_below_the_scored_layers_learns_nothing_either(classifier, scored_part):
    rows = torch.randn(6, 2, 4, 4).double()
    others = [f"{i}.*" for i in (0, 1, 4, 5) if f"{i}.*" != scored_part]
    with scorer_of(classifier, *others) as scorer:
        loss = losses_of(classifier, rows).mean()
        scorer.score(loss, INDEX)
        scorer.reject([1])
    loss.backward()
    kept = INDEX != 1
    assert_equal_grads(classifier, (losses_of(classifier, rows) * kept).sum() / 6)


def test_a_way_past_the_scored_layers_is_refused(classifier):
    rows = torch.randn(6, 2, 4, 4).double()
    with scorer_of(classifier, "7.*") as scorer:
        loss = losses_of(classifier, rows).mean()
        scorer.score(loss, INDEX)
        with pytest.raises(UnsupportedLayerError, match="past all layers that are scored"):
            scorer.reject([1])


def test_a_checkpointed_pass_under_a_loss_scale_is_rejected_too(classifier):
    rows = torch.randn(6, 2, 4, 4).double()
    with scorer_of(classifier) as scorer:
        loss = losses_of(lambda x: checkpoint(classifier, x, use_reentrant=False), rows).mean()
        scorer.score(loss * 8, INDEX, loss_scale=8.0)
        scorer.reject([2])
    (loss * 8).backward()
    assert_equal_grads(classifier, 8 * (losses_of(classifier, rows) * (INDEX != 2)).sum() / 6)


def test_in_place_operations_on_outputs_over_positions_do_no_harm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(inplace=True)).double()
    rows = torch.randn(6, 3, 8).double()
    with scorer_of(model) as scorer:
        loss = model(rows).square().sum()
        scorer.score(loss, INDEX)
        scorer.reject([0])
    loss.backward()
    assert_equal_grads(model, model(rows)[INDEX != 0].square().sum())


class Decoder(nn.Module):
    """Heads on the outputs of every layer of a decoder whose queries see one another."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.queries = nn.Parameter(torch.randn(5, 8))
        self.class_head = nn.Linear(8, 3)
        self.box_head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, memory):
        hidden, outputs = self.queries.expand(len(memory), -1, -1), []
        for layer in self.layers:
            hidden = layer(hidden, memory)
            outputs.append(hidden)
        hidden = torch.stack(outputs)
        return self.class_head(hidden), self.box_head(hidden)

    def losses(self, memory):
        logits, boxes = self(memory)
        return logits.logsumexp(dim=-1) + boxes.square().sum(dim=-1)


@pytest.mark.parametrize("seed", range(3))
def test_queries_of_a_decoder_are_rejected_though_they_see_one_another(seed):
    torch.manual_seed(seed)
    model = Decoder().double()
    memory = torch.randn(3, 7, 8).double()
    index = torch.randint(-2, 4, (2, 3, 5))
    heads = nn.ModuleDict({"class_head": model.class_head, "box_head": model.box_head})
    with scorer_of(heads) as scorer:
        losses = model.losses(memory)
        scorer.score(losses.mean(), index, n_units=4)
        scorer.reject([1, 3])
        losses.mean().backward()
    kept = ~torch.isin(index, torch.tensor([1, 3]))
    assert_equal_grads(model, (model.losses(memory) * kept).mean())


class Heads(nn.Module):
    """A trunk, and torchvision's box and mask heads with rows of their own."""

    def __init__(self):
        super().__init__()
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

        self.trunk = nn.Conv2d(3, 4, 3, padding=1)
        self.box_head, self.box_predictor = TwoMLPHead(4 * 7 * 7, 16), FastRCNNPredictor(16, 3)
        self.mask_head, self.mask_predictor = MaskRCNNHeads(4, [6], 1), MaskRCNNPredictor(6, 6, 3)


def mask_rcnn_losses(model, image, boxes, labels, foreground):
    """Return the losses of all proposals, and the mask losses of those in the foreground."""
    from torchvision.ops import roi_align

    features = model.trunk(image)
    logits, deltas = model.box_predictor(model.box_head(roi_align(features, [boxes], 7)))
    box_losses = functional.cross_entropy(logits, labels, reduction="none")
    box_losses = box_losses + functional.smooth_l1_loss(
        deltas, torch.zeros_like(deltas), reduction="none"
    ).sum(dim=1)
    pooled = roi_align(features, [boxes[foreground]], 14)
    masks = model.mask_predictor(model.mask_head(pooled))
    own = masks[torch.arange(len(foreground)), labels[foreground]]
    mask_losses = functional.binary_cross_entropy_with_logits(
        own, torch.ones_like(own), reduction="none"
    )
    return box_losses, mask_losses.mean(dim=(1, 2))


def test_pasted_objects_of_mask_r_cnn_heads_are_rejected_in_both_heads():
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = Heads().double()
    corners = torch.rand(8, 2).double() * 8
    given = {
        "image": torch.randn(1, 3, 16, 16).double(),
        "boxes": torch.cat([corners, corners + 4 + 4 * torch.rand(8, 2).double()], dim=1),
        "labels": torch.tensor([1, 2, 1, 1, 2, 0, 0, 0]),
        "foreground": torch.arange(5),
    }
    boxes = torch.tensor([REFERENCE, 0, 0, 1, 1, IGNORED, IGNORED, IGNORED])
    masks = boxes[:5]
    index = {"box_head": boxes, "box_predictor": boxes, "mask_head": masks, "mask_predictor": masks}
    with scorer_of(model, "trunk.*") as scorer:
        box_losses, mask_losses = mask_rcnn_losses(model, **given)
        loss = box_losses.mean() + mask_losses.mean()
        scorer.score(loss, index)
        scorer.reject([1])
    loss.backward()
    box_losses, mask_losses = mask_rcnn_losses(model, **given)
    assert_equal_grads(
        model, (box_losses * (boxes != 1)).mean() + (mask_losses * (masks != 1)).mean()
    )


@pytest.mark.parametrize("loss_scale", [1.0, 64.0])
def test_units_are_subtracted_after_the_backward_pass(classifier, loss_scale):
    rows = torch.randn(6, 2, 4, 4).double()
    with scorer_of(classifier) as scorer:
        loss = losses_of(classifier, rows).mean() * loss_scale
        scorer.score(loss, INDEX, loss_scale=loss_scale)
        loss.backward()
        scorer.subtract([0, 2])
    kept = (INDEX != 0) & (INDEX != 2)
    assert_equal_grads(classifier, loss_scale * (losses_of(classifier, rows) * kept).sum() / 6)


def test_subtraction_needs_every_parameter_scored_and_a_backward_pass(classifier):
    rows = torch.randn(6, 2, 4, 4).double()
    with scorer_of(classifier, "0.*") as scorer:
        loss = losses_of(classifier, rows).mean()
        scorer.score(loss, INDEX)
        with pytest.raises(UnsupportedLayerError, match="trains 2 tensors that are not scored"):
            scorer.subtract([0])
    with scorer_of(classifier) as scorer:
        scorer.score(losses_of(classifier, rows).mean(), INDEX)
        with pytest.raises(ValueError, match=r"has no \.grad: call `subtract` after the backward"):
            scorer.subtract([0])


def test_units_that_are_not_there_are_refused(classifier):
    rows = torch.randn(6, 2, 4, 4).double()
    with scorer_of(classifier) as scorer:
        with pytest.raises(ValueError, match="no units were scored"):
            scorer.reject([0])
        scorer.score(losses_of(classifier, rows).mean(), INDEX)
        with pytest.raises(ValueError, match=r"`units` must lie in \[0, 3\), got -1 to 0"):
            scorer.reject([0, -1])
