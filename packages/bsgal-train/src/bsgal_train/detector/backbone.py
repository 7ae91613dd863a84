"""timm models as detectron2 backbones under a feature pyramid."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from timm.layers import GroupNorm
from torch import Tensor

__all__ = ["TimmBackbone", "build_timm_fpn_backbone"]


class TimmBackbone(Backbone):  # type: ignore[misc]  # detectron2 ships no types
    """Feature maps `res2` to `res5` (strides 4 to 32) of a timm model with group normalisation.

    Batch statistics of a few small crops are too noisy to train from random weights, and frozen
    statistics need pre-trained ones: hence groups.
    """

    def __init__(self, name: str, **model_options: Any) -> None:
        super().__init__()
        self.body = timm.create_model(
            name,
            pretrained=False,
            features_only=True,
            norm_layer=partial(GroupNorm, num_groups=8),
            **model_options,
        )
        reduction = list(self.body.feature_info.reduction())
        stages = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}
        missing = [stride for stride in stages if stride not in reduction]
        if missing:
            raise ValueError(
                f"detector.backbone `{name}` has no feature map of stride {missing[0]}; "
                f"its strides are {reduction}"
            )
        channels = self.body.feature_info.channels()
        self._positions = {stage: reduction.index(stride) for stride, stage in stages.items()}
        self._out_features = list(stages.values())
        self._out_feature_strides = {stage: stride for stride, stage in stages.items()}
        self._out_feature_channels = {
            stage: channels[position] for stage, position in self._positions.items()
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the four feature maps of normalised images (N, 3, H, W)."""
        features = self.body(images)
        return {stage: features[position] for stage, position in self._positions.items()}


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Build the pyramid that `cfg.MODEL.TIMM` describes; called by detectron2's registry."""
    options: dict[str, Any] = {"in_chans": input_shape.channels}
    if cfg.MODEL.TIMM.CHANNELS:
        options["channels"] = tuple(cfg.MODEL.TIMM.CHANNELS)
    bottom_up = TimmBackbone(cfg.MODEL.TIMM.NAME, **options)
    return FPN(
        bottom_up=bottom_up,
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
    )
