"""detectron2's proposal network, with its losses anchor by anchor."""

from __future__ import annotations

import torch
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn import functional

from bsgal_train.detector.row_losses import BACKGROUND, Rows, object_source, report
from bsgal_train.detector.sampling import seed_image

__all__ = ["RowRPN"]

_STAGE = 0
"""Of `seed_image`."""


@PROPOSAL_GENERATOR_REGISTRY.register()
class RowRPN(RPN):  # type: ignore[misc]  # detectron2 ships no types
    """The same anchors, losses and proposals as detectron2's `RPN`; only smooth-L1 boxes.

    What is sampled in an image does not depend on the images beside it, and the losses are
    reported row by row.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label anchors as detectron2 does.

        Returns:
            Per image, int8 (A,) labels -1 ignored, 0 background, 1 object; and float (A, 6), the
            matched box, its `gt_source` and its place in the image, meaningless where the label is
            not 1.
        """
        all_anchors = Boxes.cat(anchors)
        labels, matches = [], []
        for position, targets in enumerate(gt_instances):
            seed_image(position, _STAGE)
            matched, label = self.anchor_matcher(pairwise_iou(targets.gt_boxes, all_anchors))
            labels.append(self._subsample_labels(label))
            if len(targets) == 0:
                matches.append(torch.zeros(len(all_anchors), 6, device=label.device))
                continue
            source = object_source(targets)
            names = torch.stack([source, torch.arange(len(targets), device=source.device)], dim=1)
            found = torch.cat([targets.gt_boxes.tensor, names.float()], dim=1)
            matches.append(found[matched])
        return labels, matches

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return objectness and box loss over the sampled anchors."""
        labels = torch.stack(gt_labels)
        image, anchor = (labels >= 0).nonzero(as_tuple=True)
        label = labels[image, anchor]
        positive = label == 1
        match = torch.stack(gt_boxes)[image, anchor]
        rows = Rows(
            source=torch.where(positive, match[:, 4].long(), BACKGROUND),
            object=torch.where(positive, match[:, 5].long(), -1),
            image=image,
            boxes_xyxy=Boxes.cat(anchors).tensor[anchor],
        )
        logits = torch.cat(pred_objectness_logits, dim=1)[image, anchor]
        objectness = functional.binary_cross_entropy_with_logits(
            logits, label.to(torch.float32), reduction="none"
        )
        deltas = torch.cat(pred_anchor_deltas, dim=1)[image[positive], anchor[positive]]
        wanted = self.box2box_transform.get_deltas(rows.boxes_xyxy[positive], match[positive, :4])
        location = smooth_l1_loss(deltas, wanted, self.smooth_l1_beta, reduction="none").sum(dim=1)
        return {
            name: report(
                name=name,
                kind="proposal",
                per_row=per_row * self.loss_weight.get(name, 1.0),
                count=self.batch_size_per_image * len(gt_labels),
                rows=its_rows,
            )
            for name, per_row, its_rows in (
                ("loss_rpn_cls", objectness, rows),
                ("loss_rpn_loc", location, rows[positive]),
            )
        }
