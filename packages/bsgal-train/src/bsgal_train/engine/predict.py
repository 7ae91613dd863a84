"""Run a detector over images and return LVIS result dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import nn

from bsgal_train.detector import autocast
from bsgal_train.recipe import Precision

__all__ = ["predict_each"]


def predict_each(
    detector: nn.Module,
    inputs: Iterable[dict[str, Any]],
    category_ids: Sequence[int],
    write: Callable[[list[dict[str, Any]]], object],
    precision: Precision = "fp32",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Hand over the detections of image after image.

    The detector sees one image at a time. In a batch, images are padded to the size of the largest,
    and group normalisation takes the padding for part of the image: what is found in an image would
    depend on those beside it.

    Args:
        detector: from `build_detector`; left in the mode it was in.
        inputs: detectron2 test inputs with "image", "image_id", "height", "width".
        category_ids: annotation category id of each class index.
        write: called with each image's detections: dictionaries with image_id, category_id, bbox
            (xywh, pixels of the original image), score and segmentation (COCO RLE with text
            counts).
        precision: of convolutions and linear layers.
        progress: called with the number of images done.
    """
    was_training = detector.training
    detector.eval()
    try:
        with torch.no_grad(), autocast(precision):
            for n_done, one in enumerate(inputs, start=1):
                (output,) = detector([one])
                write(_detections(one["image_id"], output["instances"].to("cpu"), category_ids))
                if progress is not None:
                    progress(n_done)
    finally:
        detector.train(was_training)


def _detections(image_id: int, instances: Any, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    boxes_xyxy = instances.pred_boxes.tensor.double()
    boxes_xywh = torch.cat([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], dim=1)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[class_index],
            "bbox": box,
            "score": score,
            "segmentation": _rle(mask),
        }
        for class_index, box, score, mask in zip(
            instances.pred_classes.tolist(),
            boxes_xywh.tolist(),
            instances.scores.tolist(),
            instances.pred_masks.numpy(),
            strict=True,
        )
    ]


def _rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
