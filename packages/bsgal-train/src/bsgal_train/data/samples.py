"""What the loaders hand to the detector: detectron2's input dictionaries, with provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from bsgal_train.annotations import Frequency, ImageRecord

__all__ = ["REAL", "PastedInstance", "TrainingSample", "image_tensor", "training_input"]

REAL = -1
"""Value of `gt_source` for a real object; a pasted one has its position in `pastes`."""


@dataclass(frozen=True, slots=True)
class PastedInstance:
    """Name one pasted object.

    Attributes:
        instance_id: As in the pool.
        category_id: As in the annotation file.
        class_index: From 0, as the detector counts.
        frequency: Group of the category: `r`, `c` or `f`.
        visible_frac: Share of the object that nothing covers and no border cuts off, 0 to 1.
    """

    instance_id: str
    category_id: int
    class_index: int
    frequency: Frequency
    visible_frac: float


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """Hold one crop twice: with pasted objects and as it was annotated.

    Both are detectron2 inputs: "image" uint8 RGB `(3, h, w)`, "instances" with gt_boxes,
    gt_classes, gt_masks (BitMasks) and gt_source (see `REAL`), "image_id", "file_name".

    Attributes:
        position: Number of the sample in the endless sequence of the run.
        pasted: The crop with pasted objects; the same object as `original` if there are none.
        original: The crop without them.
        pastes: The pasted objects that can be seen, in the order of `gt_source`.
        skipped: What could not be read on the way here, each with its path and the reason.
    """

    position: int
    pasted: dict[str, Any]
    original: dict[str, Any]
    pastes: tuple[PastedInstance, ...]
    skipped: tuple[str, ...] = ()


def image_tensor(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Turn an image `(H, W, 3)` into a tensor `(3, H, W)` of its own memory."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def training_input(
    record: ImageRecord,
    image: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.bool_],
    boxes_xyxy: npt.NDArray[np.float64],
    class_indices: Sequence[int],
    sources: Sequence[int],
) -> dict[str, Any]:
    """Build a detectron2 training input from arrays in step with each other."""
    instances = Instances(image.shape[:2])
    instances.gt_boxes = Boxes(torch.from_numpy(boxes_xyxy.astype(np.float32)))
    instances.gt_classes = torch.tensor(class_indices, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.from_numpy(np.ascontiguousarray(masks)))
    instances.gt_source = torch.tensor(sources, dtype=torch.int64)
    return {
        "image": image_tensor(image),
        "instances": instances,
        "image_id": record.image_id,
        "file_name": str(record.path),
    }
