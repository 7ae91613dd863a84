"""The index of torchvision's RoIHeads, held against autograd on a whole, tiny Mask R-CNN."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("torchvision")

from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign

from bsgal_score import REFERENCE, GhostScorer, GradientCache
from bsgal_score.ready.torchvision import RoIHeadsUnits


class Trunk(nn.Module):
    out_channels = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward(self, x):
        return self.layer(x)


def make_model():
    torch.manual_seed(0)
    return (
        MaskRCNN(
            Trunk(), min_size=64, max_size=64,
            rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
            mask_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
            box_head=nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU()),
            box_predictor=Predictor(), mask_head=nn.Conv2d(4, 4, 3, padding=1),
            mask_predictor=nn.Conv2d(4, 3, 1), box_batch_size_per_image=24,
        )
        .double()
        .train()
    )  # fmt: skip


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(8, 3), nn.Linear(8, 12)

    def forward(self, x):
        return self.cls_score(x), self.bbox_pred(x)


BOXES = torch.tensor([[4, 4, 28, 30], [30, 6, 60, 36], [6, 34, 40, 62]]).double()
UNITS = [torch.tensor([REFERENCE, 0, 1]), torch.tensor([1, 2, REFERENCE])]


def make_batch():
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator).double() for _ in UNITS]
    masks = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, BOXES.long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    target = {"boxes": BOXES, "labels": torch.tensor([1, 2, 1]), "masks": masks}
    return images, [dict(target), dict(target)]


def unit_loss(model, seen, index, unit):
    """Write out the losses of one unit's rows, as torchvision normalises them."""
    (proposals, matched, labels, box_targets), (logits, deltas), masks, targets = seen
    own = index["box_head"] == unit
    classes, wanted = torch.cat(labels), torch.cat(box_targets)
    loss = functional.cross_entropy(logits, classes, reduction="none")[own].sum() / len(logits)
    rows = (own & (classes > 0)).nonzero().flatten()
    chosen = deltas.view(len(deltas), -1, 4)[rows, classes[rows]]
    total = functional.smooth_l1_loss(chosen, wanted[rows], beta=1 / 9, reduction="sum")
    loss = loss + total / len(logits)
    foreground = [one > 0 for one in labels]
    wanted_masks = torch.cat(
        [
            project_masks_on_boxes(t["masks"], p[f], m[f], masks.shape[-1])
            for t, p, m, f in zip(targets, proposals, matched, foreground, strict=True)
        ]
    )
    mine = masks[torch.arange(len(masks)), classes[classes > 0]]
    per_mask = functional.binary_cross_entropy_with_logits(mine, wanted_masks, reduction="none")
    return loss + per_mask.mean(dim=(1, 2))[index["mask_head"] == unit].sum() / len(masks)


def test_units_of_the_models_own_forward_pass_are_right():
    model = make_model()
    cache = GradientCache(model.named_parameters(), decay=0.9, exclude=["backbone.*", "rpn.*"])
    scorer, units = (
        GhostScorer(model.roi_heads, cache),
        RoIHeadsUnits(model.roi_heads, prefix="roi_heads"),
    )
    seen = {}
    heads = model.roi_heads
    heads.box_predictor.register_forward_hook(lambda m, a, out: seen.update(box=out))
    heads.mask_predictor.register_forward_hook(lambda m, a, out: seen.update(mask=out))
    select = type(heads).select_training_samples

    def noted(proposals, targets):
        seen["targets"] = targets
        seen["samples"] = select(heads, proposals, targets)
        return seen["samples"]

    heads.select_training_samples = noted
    with units, scorer:
        losses = model(*make_batch())
        names = ("loss_classifier", "loss_box_reg", "loss_mask")
        index = units.index(UNITS)
        scores = scorer.score(sum(losses[name] for name in names), index)
        plain = {key.removeprefix("roi_heads."): one for key, one in index.items()}
        parts = (seen["samples"], seen["box"], seen["mask"], seen["targets"])
        scorer.verify({unit: unit_loss(model, parts, plain, unit) for unit in range(3)})
    assert int(scores.rows.min()) > 0
    assert scores.coverage == 1.0
    assert bool((plain["box_head"] == REFERENCE).any())


def test_rejected_objects_teach_nothing_in_the_whole_model():
    model = make_model()
    cache = GradientCache(model.roi_heads.named_parameters(), decay=0.9)
    scorer, units = GhostScorer(model.roi_heads, cache), RoIHeadsUnits(model.roi_heads)
    torch.manual_seed(3)
    with units, scorer:
        losses = model(*make_batch())
        loss = losses["loss_classifier"] + losses["loss_box_reg"] + losses["loss_mask"]
        scorer.score(loss, units.index(UNITS), update_cache=False)
        before = torch.autograd.grad(
            loss, list(model.parameters()), retain_graph=True, allow_unused=True
        )
        scorer.reject([0, 1, 2])
    after = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert [one is None for one in before] == [one is None for one in after]
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a is not None]
    assert all(changed)
    assert "select_training_samples" not in model.roi_heads.__dict__


def test_misuse_is_explained():
    model = make_model()
    with pytest.raises(TypeError, match=r"pass model\.roi_heads"):
        RoIHeadsUnits(model)
    units = RoIHeadsUnits(model.roi_heads)
    with pytest.raises(ValueError, match="no sampling of proposals was seen"):
        units.index(UNITS)
    with units:
        model(*make_batch())
    with pytest.raises(ValueError, match="has 1 images, the pass had 2"):
        units.index(UNITS[:1])
    with pytest.raises(ValueError, match=r"`unit_of_object\[0\]` must be int64 with a unit"):
        units.index([UNITS[0][:1], UNITS[1]])
