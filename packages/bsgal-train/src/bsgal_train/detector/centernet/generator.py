"""The proposal network: one tower on every level, an object heatmap and boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.layers import ShapeSpec, cat, nms
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional

from bsgal_train.detector.centernet.locations import Locations
from bsgal_train.detector.centernet.losses import (
    FocalSettings,
    giou_loss_ltrb,
    negative_focal,
    positive_focal,
)
from bsgal_train.detector.centernet.targets import HeatmapShape, image_targets
from bsgal_train.detector.row_losses import BACKGROUND, Rows, object_source, report

__all__ = ["CenterNetProposals", "ProposalLimits"]

_HEAT_WEIGHT = 0.5
_BOX_WEIGHT = 1.0
_OBJECT_PRIOR = 0.01
_BOX_BIAS = 8.0
"""Boxes of an untrained network reach this many strides in each direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalLimits:
    """Which predictions become proposals.

    Attributes:
        score_threshold: heat below it is no proposal.
        before_nms: most places kept on each level.
        after_nms: most proposals of an image.
        nms_threshold: overlap above which the lower of two proposals is dropped.
    """

    score_threshold: float = 1e-4
    before_nms: int
    after_nms: int
    nms_threshold: float = 0.9


class _Tower(nn.Module):
    """Convolutions shared by all levels; per level, heat logits and distances to the edges."""

    def __init__(self, channels: int, n_convs: int, n_levels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        # 32 groups of the usual 256 channels; fewer of few, as p7 of a small crop is one place.
        n_groups = min(32, channels // 4)
        for _ in range(n_convs):
            convolution = nn.Conv2d(channels, channels, 3, padding=1)
            layers += [convolution, nn.GroupNorm(n_groups, channels), nn.ReLU()]
        self.tower = nn.Sequential(*layers)
        self.heat = nn.Conv2d(channels, 1, 3, padding=1)
        self.box = nn.Conv2d(channels, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(n_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None, "made with one"
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        assert self.heat.bias is not None
        assert self.box.bias is not None
        nn.init.constant_(self.heat.bias, -math.log((1 - _OBJECT_PRIOR) / _OBJECT_PRIOR))
        nn.init.constant_(self.box.bias, _BOX_BIAS)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return fp32 heat logits (N, M) and distances (N, M, 4), in strides, at least 0."""
        heat, ltrb = [], []
        for level, feature in enumerate(features):
            shared = self.tower(feature)
            heat.append(self.heat(shared).float().flatten(1))
            distances = functional.relu(self.box(shared).float() * self.scales[level])
            ltrb.append(distances.flatten(2).transpose(1, 2))
        return torch.cat(heat, dim=1), torch.cat(ltrb, dim=1)


@PROPOSAL_GENERATOR_REGISTRY.register()
class CenterNetProposals(nn.Module):
    """Class-agnostic CenterNet as a detectron2 proposal generator.

    The published configuration: heat loss with weight 0.5 for positives and for negatives, both
    divided by the number of positives, and the generalised IoU of boxes. `objectness_logits` of a
    proposal holds the square root of its heat, a probability.
    """

    def __init__(self, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        settings = cfg.MODEL.CENTERNET
        self.in_features: list[str] = list(settings.IN_FEATURES)
        self.strides = [int(input_shape[name].stride or 0) for name in self.in_features]
        self.shape = HeatmapShape()
        self.focal = FocalSettings()
        self.train_limits, self.test_limits = (
            ProposalLimits(before_nms=before, after_nms=after)
            for before, after in zip(settings.BEFORE_NMS, settings.AFTER_NMS, strict=True)
        )
        channels = input_shape[self.in_features[0]].channels
        assert channels is not None, "detectron2's pyramids state their channels"
        self.head = _Tower(channels, settings.NUM_CONVS, len(self.in_features))

    def forward(
        self,
        images: Any,
        features: Mapping[str, Tensor],
        gt_instances: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return the proposals of each image and, in training, the losses."""
        levels = [features[name] for name in self.in_features]
        heat, ltrb = self.head(levels)
        locations = Locations.of(
            [(level.shape[2], level.shape[3]) for level in levels], self.strides, heat.device
        )
        losses = {}
        if self.training:
            assert gt_instances is not None, "training inputs have instances"
            losses = self._losses(locations, heat, ltrb, gt_instances)
        limits = self.train_limits if self.training else self.test_limits
        with torch.no_grad():
            proposals = [
                _proposals(locations, heat[i], ltrb[i], tuple(image_size), limits)
                for i, image_size in enumerate(images.image_sizes)
            ]
        return proposals, losses

    def _losses(
        self, locations: Locations, heat: Tensor, ltrb: Tensor, gt_instances: Sequence[Instances]
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            targets = [
                image_targets(locations, one.gt_boxes.tensor, self.shape) for one in gt_instances
            ]
        sources = [object_source(one) for one in gt_instances]
        image, centre = _flat([one.centres for one in targets])
        positive = report(
            name="loss_centernet_pos",
            kind="proposal",
            per_row=_HEAT_WEIGHT * positive_focal(heat[image, centre], self.focal),
            count=len(centre),
            rows=_rows(locations, image, centre, [one.centre_objects for one in targets], sources),
        )
        n_images = len(targets)
        everywhere = torch.arange(n_images, device=heat.device).repeat_interleave(len(locations))
        negative = report(
            name="loss_centernet_neg",
            kind="proposal",
            per_row=_HEAT_WEIGHT
            * negative_focal(heat, torch.stack([t.heat for t in targets]), self.focal).flatten(),
            count=len(centre),
            rows=Rows(
                source=torch.full_like(everywhere, BACKGROUND),
                object=torch.full_like(everywhere, -1),
                image=everywhere,
                boxes_xyxy=locations.xy.repeat(n_images, 2),
            ),
        )
        image, place = _flat([one.box_locations for one in targets])
        wanted = torch.cat([one.box_ltrb for one in targets])
        box = report(
            name="loss_centernet_box",
            kind="proposal",
            per_row=_BOX_WEIGHT * giou_loss_ltrb(ltrb[image, place], wanted),
            count=len(place),
            rows=_rows(locations, image, place, [one.box_objects for one in targets], sources),
        )
        return {
            "loss_centernet_pos": positive,
            "loss_centernet_neg": negative,
            "loss_centernet_box": box,
        }


def _flat(per_image: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return image positions and values of lists of places, end to end."""
    image = [torch.full_like(one, position) for position, one in enumerate(per_image)]
    return torch.cat(image), torch.cat(list(per_image))


def _rows(
    locations: Locations,
    image: Tensor,
    place: Tensor,
    objects: Sequence[Tensor],
    sources: Sequence[Tensor],
) -> Rows:
    source = torch.cat([own[found] for own, found in zip(sources, objects, strict=True)])
    return Rows(
        source=source,
        object=torch.cat(list(objects)),
        image=image,
        boxes_xyxy=locations.xy[place].repeat(1, 2),
    )


def _proposals(
    locations: Locations,
    heat: Tensor,
    ltrb: Tensor,
    image_hw: tuple[int, int],
    limits: ProposalLimits,
) -> Instances:
    probability = heat.sigmoid()
    chosen = []
    start = 0
    for height, width in locations.level_hw:
        own = probability[start : start + height * width]
        found = torch.nonzero(own > limits.score_threshold)[:, 0]
        if len(found) > limits.before_nms:
            found = found[own[found].topk(limits.before_nms).indices]
        chosen.append(start + found)
        start += height * width
    place = cat(chosen)
    distances = ltrb[place] * locations.stride[place, None]
    xy = locations.xy[place]
    boxes = Boxes(torch.cat([xy - distances[:, :2], xy + distances[:, 2:]], dim=1))
    scores = probability[place].sqrt()
    boxes.clip(image_hw)
    solid = boxes.nonempty() & boxes.tensor.isfinite().all(dim=1)
    boxes, scores = boxes[solid], scores[solid]
    kept = nms(boxes.tensor, scores, limits.nms_threshold)[: limits.after_nms]
    return Instances(image_hw, proposal_boxes=boxes[kept], objectness_logits=scores[kept])
