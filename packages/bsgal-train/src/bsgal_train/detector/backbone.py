"""timm models as detectron2 backbones under a feature pyramid."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from timm.layers import GroupNorm, LayerNorm2d, freeze_batch_norm_2d
from torch import Tensor, nn

from bsgal_train.detector.drop_path import drop_image_by_image
from bsgal_train.recipe import BackboneNorm

__all__ = ["TimmBackbone", "build_timm_fpn_backbone"]

_STAGES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}

# timm builds these for one image size unless it is told otherwise.
_ANY_IMAGE_SIZE = {"strict_img_size": False, "always_partition": True}


class TimmBackbone(Backbone):  # type: ignore[misc]  # detectron2 ships no types
    """Feature maps `res2` to `res5` (strides 4 to 32) of a timm model.

    Args:
        name: of the timm model.
        norm: `group`: group normalisation instead of batch normalisation, as batch statistics of a
            few small crops are too noisy to train from random weights and frozen statistics need
            pre-trained ones. `frozen`: batch normalisation with fixed statistics and scales.
            `own`: what timm builds; batch normalisation is refused.
        drop_path: probability that a block is skipped in training; drawn for each image by itself.
        weights: of the whole timm model, classifier or not; None draws them.
        model_options: passed on to timm.
    """

    def __init__(
        self,
        name: str,
        norm: BackboneNorm = "group",
        drop_path: float = 0.0,
        weights: dict[str, Tensor] | None = None,
        **model_options: Any,
    ) -> None:
        super().__init__()
        self._rebuild = partial(TimmBackbone, name, norm, drop_path, **model_options)
        options = dict(model_options)
        if norm == "group":
            options["norm_layer"] = partial(GroupNorm, num_groups=8)
        if drop_path:
            options["drop_path_rate"] = drop_path
        if name.startswith("swin"):
            options |= _ANY_IMAGE_SIZE
        if weights is not None:
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights}}
        body = timm.create_model(name, features_only=True, **options)
        drop_image_by_image(body)
        self.body: Any = freeze_batch_norm_2d(body) if norm == "frozen" else body
        _refuse_batch_norm(name, self.body)
        reduction = list(self.body.feature_info.reduction())
        missing = [stride for stride in _STAGES if stride not in reduction]
        if missing:
            raise ValueError(
                f"detector.backbone `{name}` has no feature map of stride {missing[0]}; "
                f"its strides are {reduction}"
            )
        channels = self.body.feature_info.channels()
        self._positions = {stage: reduction.index(stride) for stride, stage in _STAGES.items()}
        self._out_features = list(_STAGES.values())
        self._out_feature_strides = {stage: stride for stride, stage in _STAGES.items()}
        self._out_feature_channels = {
            stage: channels[position] for stage, position in self._positions.items()
        }
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        # Transformers normalise inside their blocks only: their sums grow from block to block.
        self.output_norms = nn.ModuleDict(
            {stage: LayerNorm2d(self._out_feature_channels[stage]) for stage in _STAGES.values()}
            if self._channels_last
            else {}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the four feature maps of normalised images (N, 3, H, W)."""
        features = self.body(images)
        found = {}
        for stage, position in self._positions.items():
            feature = features[position]
            if self._channels_last:
                feature = self.output_norms[stage](feature.permute(0, 3, 1, 2))
            found[stage] = feature
        return found

    def load_pretrained(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights of a whole timm model, in the names that timm knows.

        Raises:
            RuntimeError: They are of another model.
        """
        # timm passes over what it does not know, so a backbone could stay random unnoticed: what
        # comes out as it was drawn has not been loaded.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = self._rebuild().body.state_dict()
            torch.manual_seed(0)
            filled = self._rebuild(weights=weights).body.state_dict()
        left = [
            name
            for name, value in filled.items()
            if value.ndim > 1 and value.is_floating_point() and torch.equal(value, drawn[name])
        ]
        if left:
            raise RuntimeError(f"{len(left)} of its weights are missing, first {left[0]}")
        self.body.load_state_dict(filled)


def _refuse_batch_norm(name: str, body: nn.Module) -> None:
    live = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if any(isinstance(module, live) for module in body.modules()):
        raise ValueError(
            f"detector.backbone `{name}` has batch normalisation, whose statistics of a few crops "
            "are too noisy; set detector.backbone_norm to `frozen` (with weights) or `group`"
        )


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Build the pyramid that `cfg.MODEL.TIMM` describes; called by detectron2's registry.

    A pyramid that starts at `res3` goes on to `p6` and `p7`, for CenterNet.
    """
    settings = cfg.MODEL.TIMM
    options: dict[str, Any] = {"in_chans": input_shape.channels}
    if settings.CHANNELS:
        options["channels"] = tuple(settings.CHANNELS)
    bottom_up = TimmBackbone(settings.NAME, settings.NORM, settings.DROP_PATH, **options)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    levels = list(cfg.MODEL.FPN.IN_FEATURES)
    return FPN(
        bottom_up=bottom_up,
        in_features=levels,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, "p5") if levels[0] == "res3" else None,
    )
