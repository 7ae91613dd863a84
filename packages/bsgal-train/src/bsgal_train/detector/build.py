"""Build the detector of a recipe, and run its training losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

# Imported for their entries in detectron2's registries.
import bsgal_train.detector.backbone
import bsgal_train.detector.heads
import bsgal_train.detector.rpn  # noqa: F401
from bsgal_train.detector.sampling import sampling
from bsgal_train.recipe import DetectorConfig, Precision

__all__ = ["autocast", "build_detector", "training_losses"]


def build_detector(config: DetectorConfig, n_classes: int) -> nn.Module:
    """Build a Mask R-CNN with random weights on the CPU, in training mode.

    Weights are drawn from torch's global generator, as all of torch's initialisers do; callers
    fork and seed it.

    Args:
        config: the `detector` part of a recipe.
        n_classes: number of foreground classes, at least 1.

    Returns:
        A detectron2 `GeneralizedRCNN` that takes and returns detectron2's input and output
        dictionaries; images are RGB uint8 (3, H, W).
    """
    if n_classes < 1:
        raise ValueError(f"`n_classes` must be at least 1, got {n_classes}")
    detector: nn.Module = build_model(_detectron2_config(config, n_classes))
    return detector


def autocast(precision: Precision) -> torch.autocast:
    """Return the context in which the detector's layers run at the recipe's precision."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def training_losses(
    detector: nn.Module,
    inputs: Sequence[Mapping[str, Any]],
    precision: Precision,
    seed: int,
    image_keys: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Return the detector's named losses on a batch; their sum is what a step minimises.

    Args:
        detector: in training mode.
        inputs: detectron2 input dictionaries with "image" and "instances".
        precision: of convolutions and linear layers.
        seed: decides which anchors and proposals are sampled.
        image_keys: one number per image, see `sampling`.
    """
    with sampling(seed, image_keys), autocast(precision):
        losses: dict[str, Tensor] = detector(list(inputs))
    return losses


def _detectron2_config(config: DetectorConfig, n_classes: int) -> CfgNode:
    cfg = get_cfg()
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.META_ARCHITECTURE = "GeneralizedRCNN"
    # RGB, ImageNet statistics: the input of every timm model.
    cfg.INPUT.FORMAT = "RGB"
    model.PIXEL_MEAN = [123.675, 116.28, 103.53]
    model.PIXEL_STD = [58.395, 57.12, 57.375]
    model.MASK_ON = True

    model.BACKBONE.NAME = "build_timm_fpn_backbone"
    model.TIMM = CfgNode()
    model.TIMM.NAME = config.backbone
    model.TIMM.CHANNELS = list(config.backbone_channels)
    model.FPN.OUT_CHANNELS = config.fpn_channels
    model.FPN.NORM = "GN"
    levels = ["p2", "p3", "p4", "p5"]

    model.PROPOSAL_GENERATOR.NAME = "RowRPN"
    model.ANCHOR_GENERATOR.SIZES = [[size] for size in config.anchor_sizes_px]
    model.RPN.HEAD_NAME = "Fp32RPNHead"
    model.RPN.IN_FEATURES = levels
    model.RPN.BATCH_SIZE_PER_IMAGE = config.anchors_per_image
    model.RPN.PRE_NMS_TOPK_TRAIN = 2 * config.proposals_per_image
    model.RPN.PRE_NMS_TOPK_TEST = 2 * config.proposals_per_image
    model.RPN.POST_NMS_TOPK_TRAIN = config.proposals_per_image
    model.RPN.POST_NMS_TOPK_TEST = config.proposals_per_image

    model.ROI_HEADS.NAME = "SigmoidROIHeads"
    model.ROI_HEADS.IN_FEATURES = levels
    model.ROI_HEADS.NUM_CLASSES = n_classes
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = config.rois_per_image
    model.ROI_HEADS.POSITIVE_FRACTION = config.positive_fraction
    model.ROI_HEADS.SCORE_THRESH_TEST = config.score_threshold
    model.ROI_HEADS.NMS_THRESH_TEST = config.nms_threshold
    cfg.TEST.DETECTIONS_PER_IMAGE = config.detections_per_image

    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_CONV = 1
    model.ROI_BOX_HEAD.CONV_DIM = config.head_channels
    model.ROI_BOX_HEAD.NUM_FC = 1
    model.ROI_BOX_HEAD.FC_DIM = config.box_features
    model.ROI_BOX_HEAD.NORM = "GN"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 1
    model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    model.ROI_BOX_HEAD.PRIOR_PROB = config.prior_prob

    model.ROI_MASK_HEAD.NAME = "Fp32MaskHead"
    model.ROI_MASK_HEAD.NUM_CONV = config.n_mask_convs
    model.ROI_MASK_HEAD.CONV_DIM = config.head_channels
    model.ROI_MASK_HEAD.NORM = "GN"
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    model.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 2
    model.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = config.class_agnostic_masks
    return cfg
