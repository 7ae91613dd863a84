"""What the loaders hand on: images as plain tensors, and where each of their objects comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bsgal_train.annotations import Frequency, ImageRecord

__all__ = [
    "NOT_ANNOTATED",
    "REAL",
    "LabelledImage",
    "PastedInstance",
    "ReferenceImage",
    "TrainingSample",
    "image_tensor",
    "labelled_image",
]

REAL = -1
"""`source` of a real object; a pasted one has its position in `pastes`."""

NOT_ANNOTATED = -1
"""`annotation_ids` of an object that the annotation file does not have: a pasted one."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """Hold an image and its N objects, every field in step with every other.

    Attributes:
        image_id: As in the annotation file.
        file_name: Path of the whole image.
        image: uint8 RGB `(3, h, w)`.
        boxes_xyxy: float32 `(N, 4)`, absolute pixels, far edge exclusive.
        class_indices: int64 `(N,)`, from 0, as the detector counts.
        masks: bool `(N, h, w)`, visible pixels.
        source: int64 `(N,)`: `REAL`, or which of the sample's pasted objects it is.
        annotation_ids: int64 `(N,)`: id of the annotation that a real object was drawn from,
            whatever a crop or a paste has left of it; `NOT_ANNOTATED` for a pasted one.
        visible_frac: float32 `(N,)`: share of the object that no other one covers, of a pasted one
            also that no border cuts off; a real one counts as it is in the crop.
    """

    image_id: int
    file_name: str
    image: Tensor
    boxes_xyxy: Tensor
    class_indices: Tensor
    masks: Tensor
    source: Tensor
    annotation_ids: Tensor
    visible_frac: Tensor

    def __len__(self) -> int:
        return len(self.class_indices)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Give the height and width in pixels."""
        height, width = self.image.shape[1:]
        return height, width

    def only(self, chosen: Tensor | slice) -> LabelledImage:
        """Give the image with some of its objects, by mask, by index or by slice."""
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[chosen],
            class_indices=self.class_indices[chosen],
            masks=self.masks[chosen],
            source=self.source[chosen],
            annotation_ids=self.annotation_ids[chosen],
            visible_frac=self.visible_frac[chosen],
        )


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


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceImage:
    """Hold a real image to compare with.

    Attributes:
        image: Cropped as training images are.
        seed: What it was drawn by.
        skipped: What could not be read on the way here, each with its path and the reason.
    """

    image: LabelledImage
    seed: int
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """Hold one crop twice: with pasted objects and as it was annotated.

    Attributes:
        position: Number of the sample in the endless sequence of the run.
        pasted: The crop with pasted objects; the same object as `original` if there are none.
        original: The crop without them.
        pastes: The pasted objects that can be seen, as `pasted.source` counts them.
        skipped: What could not be read on the way here, each with its path and the reason.
        reference: The real image to compare with, where the sample's step asks for one and it was
            drawn ahead.
    """

    position: int
    pasted: LabelledImage
    original: LabelledImage
    pastes: tuple[PastedInstance, ...]
    skipped: tuple[str, ...] = ()
    reference: ReferenceImage | None = None


def image_tensor(image: npt.NDArray[np.uint8]) -> Tensor:
    """Turn an image `(H, W, 3)` into a tensor `(3, H, W)` of its own memory."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def labelled_image(
    record: ImageRecord,
    image: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.bool_],
    boxes_xyxy: npt.NDArray[np.float64],
    *,
    class_indices: Sequence[int],
    source: Sequence[int],
    annotation_ids: npt.NDArray[np.int64],
    visible_frac: npt.NDArray[np.float64],
) -> LabelledImage:
    """Build a `LabelledImage` from arrays in step with each other."""
    return LabelledImage(
        image_id=record.image_id,
        file_name=str(record.path),
        image=image_tensor(image),
        boxes_xyxy=torch.from_numpy(boxes_xyxy.astype(np.float32)),
        class_indices=torch.tensor(class_indices, dtype=torch.int64),
        masks=torch.from_numpy(np.ascontiguousarray(masks)),
        source=torch.tensor(source, dtype=torch.int64),
        annotation_ids=torch.from_numpy(annotation_ids.copy()),
        visible_frac=torch.from_numpy(visible_frac.astype(np.float32)),
    )
