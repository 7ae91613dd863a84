"""The units of DETR's queries, held against autograd on a tiny model with random weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("transformers")
pytest.importorskip("scipy")

from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import generalized_box_iou

from bsgal_score import REFERENCE, GhostScorer, GradientCache
from bsgal_score.ready.detr import MatchedQueries

UNITS = [torch.tensor([REFERENCE, 0, 1]), torch.tensor([1, 2])]
N_QUERIES = 6
HEADS = ("class_labels_classifier", "bbox_predictor")


@pytest.fixture(autouse=True)
def float64():
    # The loss makes its class weights anew, in the default dtype.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_model(auxiliary_loss):
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic",
        out_features=["stage2"],
    )  # fmt: skip
    config = DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, d_model=8,
        encoder_layers=1, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=8, num_queries=N_QUERIES, num_labels=3, dropout=0.0,
        attention_dropout=0.0, auxiliary_loss=auxiliary_loss, use_pretrained_backbone=False,
    )  # fmt: skip
    return DetrForObjectDetection(config).double().eval()


def make_batch():
    generator = torch.Generator().manual_seed(1)
    labels = [
        {
            "class_labels": torch.arange(len(units)) % 3,
            "boxes": 0.3 + 0.3 * torch.rand(len(units), 4, generator=generator),
        }
        for units in UNITS
    ]
    return torch.randn(2, 3, 32, 32, generator=generator), labels


def unit_loss(model, outputs, labels, queries, unit):
    """Write out a unit's terms of the loss of every output that was matched."""
    parts = [(outputs.logits, outputs.pred_boxes)]
    parts += [(o["logits"], o["pred_boxes"]) for o in outputs.auxiliary_outputs or []]
    weight = torch.ones(4)
    weight[-1] = model.config.eos_coefficient
    total = torch.zeros(())
    for (logits, boxes), match, own in zip(
        parts, queries.matches, queries.units(UNITS, N_QUERIES), strict=True
    ):
        classes = torch.full(own.shape, 3)
        for image, (query, thing) in enumerate(match):
            classes[image, query] = labels[image]["class_labels"][thing]
            for q, t in zip(query.tolist(), thing.tolist(), strict=True):
                if own[image, q] == unit:
                    pair = boxes[image, q][None], labels[image]["boxes"][t][None]
                    corners = [center_to_corners_format(one) for one in pair]
                    iou = generalized_box_iou(*corners)[0, 0]
                    term = model.config.bbox_loss_coefficient * (pair[0] - pair[1]).abs().sum()
                    total = total + (term + model.config.giou_loss_coefficient * (1 - iou)) / 5
        per = functional.cross_entropy(logits.mT, classes, weight, reduction="none")
        total = total + per[own == unit].sum() / weight[classes].sum()
    return total


@pytest.mark.parametrize("auxiliary_loss", [True, False])
def test_units_of_the_queries_are_right(auxiliary_loss):
    model = make_model(auxiliary_loss)
    images, labels = make_batch()
    cache = GradientCache(model.named_parameters(), decay=0.9, exclude=["model.*"])
    heads = [getattr(model, name) for name in HEADS]
    scorer, queries = GhostScorer(heads, cache), MatchedQueries()
    with queries, scorer:
        outputs = model(images, labels=labels)
        index = queries.detr_index(UNITS, N_QUERIES)
        scores = scorer.score(outputs.loss, index, unit_axis=0)
        own = {u: unit_loss(model, outputs, labels, queries, u) for u in range(3)}
        scorer.verify(own)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        exact = torch.autograd.grad(
            outputs.loss - own[1], list(trained.values()), retain_graph=True, allow_unused=True
        )
        scorer.reject([1])
    assert scores.coverage == 1.0
    assert len(queries.matches) == (3 if auxiliary_loss else 1)
    # Below the heads too, where queries see one another.
    outputs.loss.backward()
    for (name, parameter), expected in zip(trained.items(), exact, strict=True):
        if expected is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-12, msg=name)


def test_misuse_is_explained():
    model, queries = make_model(False), MatchedQueries()
    with pytest.raises(ValueError, match="no matching was seen: run the model with labels"):
        queries.units(UNITS, N_QUERIES)
    images, labels = make_batch()
    with queries:
        model(images, labels=labels)
    model(images, labels=labels)
    assert len(queries.matches) == 1
    with pytest.raises(ValueError, match="has 1 images, the pass had 2"):
        queries.units(UNITS[:1], N_QUERIES)
    with pytest.raises(ValueError, match=r"`unit_of_object\[0\]` must be int64 with a unit for"):
        queries.units([UNITS[0][:1], UNITS[1]], N_QUERIES)
