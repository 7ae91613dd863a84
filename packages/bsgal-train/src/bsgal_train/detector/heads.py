"""The parts of the heads that detectron2 v0.6 lacks: sigmoid classes, fp32 outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads, StandardROIHeads
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    MaskRCNNConvUpsampleHead,
)
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn
from torch.nn import functional

from bsgal_train.detector.agreement import agree
from bsgal_train.detector.federated import FederatedClasses
from bsgal_train.detector.row_losses import proposal_rows, report
from bsgal_train.detector.sampling import seed_image

__all__ = [
    "Fp32MaskHead",
    "Fp32RPNHead",
    "ImageWiseSampling",
    "SigmoidOutputLayers",
    "SigmoidROIHeads",
    "class_targets",
]

_STAGE = 1
"""Of `seed_image`."""

_ANY_CLASS = 1 << 30
"""More than any number of classes: the mask head sees foreground only."""

_HARDEST_SHARE = 0.05
"""Of a mask's pixels; an outline has about a tenth of them."""

# Detectron2's classes carry no types, hence the ignores on every subclass below.


def class_targets(class_indices: Tensor, n_classes: int) -> Tensor:
    """Return one row of 0/1 targets per proposal; background (`n_classes`) is all zeros.

    Args:
        class_indices: long (R,), each in [0, n_classes].
        n_classes: number of foreground classes.

    Returns:
        float (R, n_classes).
    """
    return functional.one_hot(class_indices, n_classes + 1)[:, :n_classes].to(torch.float32)


def _binary_losses(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


class SigmoidOutputLayers(FastRCNNOutputLayers):  # type: ignore[misc]
    """Class logits without a background row, trained with binary cross-entropy.

    Each class is its own yes-or-no question, so frequent classes do not push rare ones down
    through a shared softmax; the bias starts at `prior_prob` so that the many negatives do not
    swamp the first steps (the initialisation of RetinaNet, section 4.1 of its paper).

    Attributes:
        federated: draws the classes that take part in a batch's loss; None: all of them.
        stage: ending of the losses' names and of the modules', such as `0` in a cascade.
    """

    @configurable  # type: ignore[untyped-decorator]
    def __init__(self, *args: Any, prior_prob: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.federated: FederatedClasses | None = None
        self.stage = ""
        self.cls_score: nn.Linear = nn.Linear(self.bbox_pred.in_features, self.num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        """Read the settings of detectron2's layer and the prior."""
        options = super().from_config(cfg, input_shape)
        options["prior_prob"] = cfg.MODEL.ROI_BOX_HEAD.PRIOR_PROB
        return dict(options)

    def forward(self, box_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (R, n_classes) and box deltas, both fp32."""
        logits, deltas = super().forward(box_features)
        return logits.float(), deltas.float()

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Any]) -> dict[str, Tensor]:
        """Return the class and the box loss, each a sum divided by the number of proposals."""
        logits, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        # An image without objects has no `gt_boxes`; its proposals are background and their
        # boxes are never read.
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        rows = proposal_rows(proposals, self.num_classes)
        foreground = gt_classes < self.num_classes
        wanted = self.box2box_transform.get_deltas(
            rows[foreground].boxes_xyxy, gt_boxes[foreground]
        )
        distance = smooth_l1_loss(deltas[foreground], wanted, self.smooth_l1_beta, reduction="none")
        name_end = f"_stage{self.stage}" if self.stage else ""
        module_end = f".{self.stage}" if self.stage else ""
        return {
            f"loss_cls{name_end}": report(
                name=f"loss_cls{name_end}",
                kind="cls",
                per_row=self._class_losses(logits, gt_classes, f"classes of loss_cls{name_end}"),
                count=len(gt_classes),
                rows=rows,
                modules=(f"roi_heads.box_head{module_end}", f"roi_heads.box_predictor{module_end}"),
            ),
            f"loss_box_reg{name_end}": report(
                name=f"loss_box_reg{name_end}",
                kind="box",
                per_row=distance.sum(dim=1),
                count=len(gt_classes),
                rows=rows[foreground],
            ),
        }

    def _class_losses(self, logits: Tensor, gt_classes: Tensor, agreement: str) -> Tensor:
        """Return each proposal's class loss (R,), summed over the classes that take part."""
        federated = self.federated
        if federated is None:
            targets = class_targets(gt_classes, self.num_classes)
            return _binary_losses(logits, targets).sum(dim=1)
        taking_part = agree(agreement, lambda: federated.draw(gt_classes))
        targets = (gt_classes[:, None] == taking_part).to(logits.dtype)
        losses = _binary_losses(logits[:, taking_part], targets).sum(dim=1)
        # An object's own class takes part, even where the classes are those of an earlier pass.
        left_out = (gt_classes < self.num_classes) & ~torch.isin(gt_classes, taking_part)
        own = logits.gather(1, gt_classes.clamp(max=self.num_classes - 1)[:, None])[:, 0]
        return torch.where(left_out, losses + functional.softplus(-own), losses)

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Any]
    ) -> tuple[Tensor, ...]:
        """Return class probabilities with the empty background column detectron2 expects."""
        probabilities = functional.pad(predictions[0].sigmoid(), (0, 1))
        return torch.split(probabilities, [len(p) for p in proposals])


class ImageWiseSampling(ROIHeads):  # type: ignore[misc]
    """Part of region heads: what is sampled in an image does not depend on those beside it."""

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Any], targets: list[Any]) -> list[Any]:
        """Sample as detectron2 does; what is drawn in an image is its own (see `seed_image`)."""
        sampled = []
        for position, (proposal, target) in enumerate(zip(proposals, targets, strict=True)):
            seed_image(position, _STAGE)
            # Carried over to the proposals as all fields of this prefix are.
            target.gt_object = torch.arange(len(target), device=target.gt_classes.device)
            sampled += super().label_and_sample_proposals([proposal], [target])
        return sampled


@ROI_HEADS_REGISTRY.register()
class SigmoidROIHeads(ImageWiseSampling, StandardROIHeads):  # type: ignore[misc]
    """detectron2's heads with `SigmoidOutputLayers` as box predictor."""

    @classmethod
    def _init_box_head(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        options = super()._init_box_head(cfg, input_shape)
        options["box_predictor"] = SigmoidOutputLayers(cfg, options["box_head"].output_shape)
        return dict(options)


@RPN_HEAD_REGISTRY.register()
class Fp32RPNHead(StandardRPNHead):  # type: ignore[misc]
    """detectron2's proposal head; its outputs are fp32 whatever the precision inside."""

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness logits and anchor deltas per pyramid level."""
        logits, deltas = super().forward(features)
        return [level.float() for level in logits], [level.float() for level in deltas]


@ROI_MASK_HEAD_REGISTRY.register()
class Fp32MaskHead(MaskRCNNConvUpsampleHead):  # type: ignore[misc]
    """detectron2's mask head; its logits are fp32 whatever the precision inside."""

    def layers(self, region_features: Tensor) -> Tensor:
        """Return mask logits (R, C, side, side)."""
        logits: Tensor = super().layers(region_features)
        return logits.float()

    def forward(self, region_features: Tensor, instances: list[Any]) -> Any:
        """Return the mask loss in training, else the instances with their masks."""
        if not self.training:
            return super().forward(region_features, instances)
        logits = self.layers(region_features)
        rows = proposal_rows(instances, n_classes=_ANY_CLASS)
        if logits.shape[1] > 1:
            gt_classes = torch.cat([one.gt_classes for one in instances])
            logits = logits[torch.arange(len(logits), device=logits.device), gt_classes]
        else:
            logits = logits[:, 0]
        targets = [
            one.gt_masks.crop_and_resize(one.proposal_boxes.tensor, logits.shape[-1])
            for one in instances
            if len(one)
        ]
        # Without foreground there is nothing to learn, but still a graph.
        wanted = torch.cat(targets).to(logits) if targets else logits.detach()
        per_pixel = _binary_losses(logits, wanted)
        loss = report(
            name="loss_mask",
            kind="mask",
            per_row=per_pixel.flatten(1).mean(dim=1) * self.loss_weight,
            count=len(logits),
            rows=rows,
            modules=("roi_heads.mask_head",),
            hardest=_hardest(per_pixel.detach()),
        )
        return {"loss_mask": loss}


def _hardest(per_pixel: Tensor) -> Tensor:
    """Return the mean loss (R,) of the hardest pixels of each mask (R, side, side)."""
    flat = per_pixel.flatten(1)
    n_hardest = max(1, round(_HARDEST_SHARE * flat.shape[1]))
    return flat.topk(n_hardest, dim=1, sorted=False).values.mean(dim=1)
