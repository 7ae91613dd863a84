"""The detector's edge: from plain tensors to detectron2's input dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import BitMasks, Boxes, Instances

from bsgal_train.data.samples import LabelledImage

__all__ = ["detector_inputs"]


def detector_inputs(images: Sequence[LabelledImage]) -> list[dict[str, Any]]:
    """Build the training inputs of a batch; tensors are shared, not copied.

    Returns:
        Per image "image", uint8 RGB `(3, h, w)`, "image_id", "file_name" and "instances" with
        gt_boxes, gt_classes, gt_masks (BitMasks) and gt_source, which is `LabelledImage.source`.
    """
    return [
        {
            "image": one.image,
            "instances": _instances(one),
            "image_id": one.image_id,
            "file_name": one.file_name,
        }
        for one in images
    ]


def _instances(image: LabelledImage) -> Instances:
    instances = Instances(image.image_hw)
    instances.gt_boxes = Boxes(image.boxes_xyxy)
    instances.gt_classes = image.class_indices
    instances.gt_masks = BitMasks(image.masks)
    instances.gt_source = image.source
    return instances
