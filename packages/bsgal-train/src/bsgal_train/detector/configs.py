"""From a recipe's detector to detectron2's configuration."""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg

from bsgal_train.recipe import DetectorConfig

__all__ = ["detectron2_config"]

# Of the three stages (Cascade R-CNN, arXiv 1712.00726, with CenterNet2's overlaps).
_CASCADE_IOUS = [0.6, 0.7, 0.8]
_CASCADE_BOX_WEIGHTS = [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 10.0, 10.0], [30.0, 30.0, 15.0, 15.0]]


def detectron2_config(config: DetectorConfig, n_classes: int) -> CfgNode:
    """Return what detectron2's registries build the detector from.

    Args:
        config: the `detector` part of a recipe.
        n_classes: number of foreground classes.
    """
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    # RGB, ImageNet statistics: the input of every timm model.
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.MASK_ON = True
    _set_backbone(cfg, config)
    _set_heads(cfg, config, n_classes)
    if config.architecture == "centernet2":
        _set_centernet2(cfg, config)
    else:
        _set_mask_rcnn(cfg, config)
    return cfg


def _set_backbone(cfg: CfgNode, config: DetectorConfig) -> None:
    model = cfg.MODEL
    model.BACKBONE.NAME = "build_timm_fpn_backbone"
    model.TIMM = CfgNode()
    model.TIMM.NAME = config.backbone
    model.TIMM.CHANNELS = list(config.backbone_channels)
    model.TIMM.NORM = config.backbone_norm
    model.TIMM.DROP_PATH = config.drop_path
    model.FPN.OUT_CHANNELS = config.fpn_channels
    model.FPN.NORM = _norm(config)


def _set_mask_rcnn(cfg: CfgNode, config: DetectorConfig) -> None:
    model = cfg.MODEL
    levels = ["p2", "p3", "p4", "p5"]
    model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    n_train, n_test, n_before_test = _proposal_counts(config)
    # The same layers and losses as detectron2's RPN.
    model.PROPOSAL_GENERATOR.NAME = "RowRPN"
    model.ANCHOR_GENERATOR.SIZES = [[size] for size in config.anchor_sizes_px]
    model.RPN.HEAD_NAME = "Fp32RPNHead"
    model.RPN.IN_FEATURES = levels
    model.RPN.BATCH_SIZE_PER_IMAGE = config.anchors_per_image
    model.RPN.PRE_NMS_TOPK_TRAIN = 2 * n_train
    model.RPN.PRE_NMS_TOPK_TEST = n_before_test
    model.RPN.POST_NMS_TOPK_TRAIN = n_train
    model.RPN.POST_NMS_TOPK_TEST = n_test
    model.ROI_HEADS.NAME = "SigmoidROIHeads"
    model.ROI_HEADS.IN_FEATURES = levels


def _set_centernet2(cfg: CfgNode, config: DetectorConfig) -> None:
    model = cfg.MODEL
    model.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    n_train, n_test, n_before_test = _proposal_counts(config)
    model.PROPOSAL_GENERATOR.NAME = "CenterNetProposals"
    model.CENTERNET = CfgNode()
    model.CENTERNET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    model.CENTERNET.NUM_CONVS = config.n_tower_convs
    model.CENTERNET.BEFORE_NMS = [2 * n_train, n_before_test]
    model.CENTERNET.AFTER_NMS = [n_train, n_test]
    model.ROI_HEADS.NAME = "SigmoidCascadeROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["p3", "p4", "p5"]
    model.ROI_HEADS.IOU_THRESHOLDS = _CASCADE_IOUS[:1]
    model.ROI_BOX_CASCADE_HEAD.IOUS = _CASCADE_IOUS
    model.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS = _CASCADE_BOX_WEIGHTS


def _set_heads(cfg: CfgNode, config: DetectorConfig, n_classes: int) -> None:
    model = cfg.MODEL
    model.ROI_HEADS.NUM_CLASSES = n_classes
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = config.rois_per_image
    model.ROI_HEADS.POSITIVE_FRACTION = config.positive_fraction
    model.ROI_HEADS.SCORE_THRESH_TEST = config.score_threshold
    model.ROI_HEADS.NMS_THRESH_TEST = config.nms_threshold
    cfg.TEST.DETECTIONS_PER_IMAGE = config.detections_per_image

    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_CONV = config.n_box_convs
    model.ROI_BOX_HEAD.CONV_DIM = config.head_channels
    model.ROI_BOX_HEAD.NUM_FC = config.n_box_fcs
    model.ROI_BOX_HEAD.FC_DIM = config.box_features
    model.ROI_BOX_HEAD.NORM = _norm(config)
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = config.roi_samples[0]
    model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    model.ROI_BOX_HEAD.PRIOR_PROB = config.prior_prob

    model.ROI_MASK_HEAD.NAME = "Fp32MaskHead"
    model.ROI_MASK_HEAD.NUM_CONV = config.n_mask_convs
    model.ROI_MASK_HEAD.CONV_DIM = config.head_channels
    model.ROI_MASK_HEAD.NORM = _norm(config)
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    model.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = config.roi_samples[1]
    model.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = config.class_agnostic_masks


def _norm(config: DetectorConfig) -> str:
    return "GN" if config.head_norm == "group" else ""


def _proposal_counts(config: DetectorConfig) -> tuple[int, int, int]:
    """Return the proposals kept in training and at prediction, and those that enter NMS there."""
    n_test = config.test_proposals_per_image or config.proposals_per_image
    return config.proposals_per_image, n_test, config.test_proposals_before_nms or 2 * n_test
