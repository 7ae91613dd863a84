"""A small Mask R-CNN of torchvision's parts, with losses per image and per proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .scenes import SIDE_PX, Scene

N_CLASSES = 11
PROPOSALS_PER_IMAGE = 32
HEADS = ("roi_heads.box_head", "roi_heads.box_predictor", "roi_heads.mask_head",
         "roi_heads.mask_predictor")  # fmt: skip


def make_detector() -> Any:
    """Return the detector: stride 8, one feature level, GroupNorm, 0.4 M parameters."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    layers: list[nn.Module] = []
    for n_in, n_out, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
        layers += [
            nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1),
            nn.GroupNorm(8, n_out),
            nn.ReLU(),
        ]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = 64  # type: ignore[assignment]  # what torchvision asks for
    detector = MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((24, 36, 52),), ((0.7, 1.0, 1.4),)),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=50,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=PROPOSALS_PER_IMAGE,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=TwoMLPHead(64 * 25, 128),
        box_predictor=FastRCNNPredictor(128, N_CLASSES),
        mask_head=MaskRCNNHeads(64, (32, 32), 1),
        mask_predictor=MaskRCNNPredictor(32, 32, N_CLASSES),
    )
    return detector.train()


@dataclass(frozen=True)
class Losses:
    """Losses of some scenes, with their graph.

    Every term is normalised by the number of its kind in the scenes (sampled anchors, proposals,
    foreground proposals), as in torchvision's training.
    """

    rpn: Tensor
    """Objectness and box regression of the proposal network, scalar."""
    boxes: Tensor
    """Classification plus box regression of each proposal, (n_proposals,)."""
    masks: Tensor
    """Mask loss of each foreground proposal, (n_foreground,)."""
    box_scene: Tensor
    """Scene of each proposal."""
    box_object: Tensor
    """Object of each proposal in its scene, -1 for background."""
    foreground: Tensor
    """Which proposals have a mask loss, bool."""

    def total(self) -> Tensor:
        """Return the sum that is trained on."""
        return self.rpn + self.boxes.sum() + self.masks.sum()


def propose(detector: Any, scenes: Sequence[Scene]) -> list[Tensor]:
    """Return the proposal network's boxes at the weights of now."""
    with torch.no_grad():
        images, _, objectness, deltas, anchors = _proposal_network(detector, scenes)
        rpn = detector.rpn
        per_level = [o[0].numel() for o in objectness]
        flat_objectness, flat_deltas = _flatten(objectness, deltas)
        boxes = rpn.box_coder.decode(flat_deltas, anchors).view(len(scenes), -1, 4)
        found, _ = rpn.filter_proposals(boxes, flat_objectness, images.image_sizes, per_level)
        return list(found)


def losses(detector: Any, scenes: Sequence[Scene], proposals: Sequence[Tensor]) -> Losses:
    """Return the training losses with given proposals.

    Sampling of anchors and proposals draws from torch's global generator, and depends on the
    scenes and proposals alone, not on the weights: the losses are smooth functions of them.
    """
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    targets = [scene.target() for scene in scenes]
    images, features, objectness, deltas, anchors = _proposal_network(detector, scenes)
    rpn, heads = detector.rpn, detector.roi_heads
    labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
    regression = rpn.box_coder.encode(matched, anchors)
    rpn_loss = sum(rpn.compute_loss(*_flatten(objectness, deltas), labels, regression))

    sampled, matched_index, classes, box_targets = heads.select_training_samples(
        list(proposals), targets
    )
    shapes = images.image_sizes
    pooled = heads.box_roi_pool(features, sampled, shapes)
    logits, box_deltas = heads.box_predictor(heads.box_head(pooled))
    all_classes, all_targets = torch.cat(classes), torch.cat(box_targets)
    n = len(all_classes)
    is_object = all_classes > 0
    own_deltas = box_deltas.view(n, -1, 4)[torch.arange(n), all_classes]
    box_error = functional.smooth_l1_loss(own_deltas, all_targets, beta=1 / 9, reduction="none")
    per_box = functional.cross_entropy(logits, all_classes, reduction="none")
    per_box = (per_box + is_object * box_error.sum(1)) / n

    positive = [(one > 0).nonzero().flatten() for one in classes]
    mask_boxes = [boxes[rows] for boxes, rows in zip(sampled, positive, strict=True)]
    mask_objects = [index[rows] for index, rows in zip(matched_index, positive, strict=True)]
    mask_features = heads.mask_head(heads.mask_roi_pool(features, mask_boxes, shapes))
    mask_logits = heads.mask_predictor(mask_features)
    mask_targets = torch.cat(
        [
            project_masks_on_boxes(target["masks"], boxes, rows, mask_logits.shape[-1])
            for target, boxes, rows in zip(targets, mask_boxes, mask_objects, strict=True)
        ]
    )
    n_foreground = len(mask_targets)
    own_logits = mask_logits[torch.arange(n_foreground), all_classes[is_object]]
    per_mask = functional.binary_cross_entropy_with_logits(
        own_logits, mask_targets, reduction="none"
    ).mean((1, 2)) / max(1, n_foreground)
    return Losses(
        rpn=rpn_loss,
        boxes=per_box,
        masks=per_mask,
        box_scene=torch.arange(len(scenes)).repeat_interleave(
            torch.tensor([len(one) for one in classes])
        ),
        box_object=torch.where(is_object, torch.cat(matched_index), -1),
        foreground=is_object,
    )


def _proposal_network(detector: Any, scenes: Sequence[Scene]) -> tuple[Any, ...]:
    from torchvision.models.detection.image_list import ImageList

    pixels = (torch.stack([scene.image for scene in scenes]) - 0.45) / 0.25
    images = ImageList(pixels, [(SIDE_PX, SIDE_PX)] * len(scenes))
    features = {"0": detector.backbone(pixels)}
    maps = list(features.values())
    objectness, deltas = detector.rpn.head(maps)
    return images, features, objectness, deltas, detector.rpn.anchor_generator(images, maps)


def _flatten(objectness: list[Tensor], deltas: list[Tensor]) -> tuple[Tensor, Tensor]:
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    flat: tuple[Tensor, Tensor] = concat_box_prediction_layers(objectness, deltas)
    return flat
