"""Cascade R-CNN heads with sigmoid classes, as CenterNet2 uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from bsgal_train.detector.heads import ImageWiseSampling, SigmoidOutputLayers
from bsgal_train.detector.row_losses import object_source

__all__ = ["SigmoidCascadeROIHeads"]


@ROI_HEADS_REGISTRY.register()
class SigmoidCascadeROIHeads(ImageWiseSampling, CascadeROIHeads):  # type: ignore[misc]
    """Three stages of class-agnostic boxes at rising overlap, and one class-agnostic mask head.

    The score of a detection is the root of its mean class probability over the stages times the
    proposal's own score, which is how CenterNet2 reads the two stages as one probability.
    """

    @classmethod
    def _init_box_head(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        options = dict(super()._init_box_head(cfg, input_shape))
        predictors = []
        for stage, (head, weights) in enumerate(
            zip(
                options["box_heads"],
                cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS,
                strict=True,
            )
        ):
            predictor = SigmoidOutputLayers(
                cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
            )
            predictor.stage = str(stage)
            predictors.append(predictor)
        options["box_predictors"] = predictors
        return options

    def _forward_box(
        self,
        features: Mapping[str, Tensor],
        proposals: list[Instances],
        targets: Sequence[Instances] | None = None,
    ) -> Any:
        """Return the losses of all stages in training, else the detections of each image."""
        levels = [features[name] for name in self.box_in_features]
        image_sizes = [one.image_size for one in proposals]
        losses: dict[str, Tensor] = {}
        probabilities: list[Sequence[Tensor]] = []
        proposal_scores = [one.objectness_logits for one in proposals]
        for stage in range(self.num_cascade_stages):
            predictor: Any = self.box_predictor[stage]
            predictions = self._run_stage(levels, proposals, stage)
            if self.training:
                losses.update(predictor.losses(predictions, proposals))
            else:
                probabilities.append(predictor.predict_probs(predictions, proposals))
            boxes = predictor.predict_boxes(predictions, proposals)
            if stage + 1 < self.num_cascade_stages:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    assert targets is not None, "training inputs have instances"
                    proposals = self._match_and_label_boxes(proposals, stage + 1, targets)
        if self.training:
            return losses
        scores = [
            (torch.stack(stages).mean(0) * own[:, None]).sqrt()
            for own, *stages in zip(proposal_scores, *probabilities, strict=True)
        ]
        detections, _ = fast_rcnn_inference(
            boxes,
            scores,
            image_sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return detections

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: Sequence[Instances]
    ) -> list[Instances]:
        """Label a later stage's boxes as detectron2 does, and say which object each stands for."""
        for proposal, target in zip(proposals, targets, strict=True):
            quality = pairwise_iou(target.gt_boxes, proposal.proposal_boxes)
            matched, label = self.proposal_matchers[stage](quality)
            if len(target) == 0:
                proposal.gt_classes = torch.full_like(matched, self.num_classes)
                continue
            proposal.gt_classes = target.gt_classes[matched]
            proposal.gt_classes[label == 0] = self.num_classes
            proposal.gt_boxes = target.gt_boxes[matched]
            proposal.gt_object = matched
            proposal.gt_source = object_source(target)[matched]
        return proposals
