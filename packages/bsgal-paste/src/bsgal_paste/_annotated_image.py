"""An image with its instances: the input of every paste."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import BoolArray, ByteArray, FloatArray, IntArray


def tight_boxes_xyxy(masks: BoolArray) -> FloatArray:
    """Compute the smallest box around each mask.

    Args:
        masks: Bool `(N, H, W)`.

    Returns:
        Float64 `(N, 4)`, absolute pixels, far edge exclusive; zeros for an empty mask.
    """
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
        box[:] = x, y, x + width, y + height
    return boxes


class AnnotatedImage:
    """Hold an RGB image and the instances annotated in it.

    Arrays are kept, not copied, and never written to.

    Args:
        image: uint8 RGB `(H, W, 3)`.
        masks: Bool `(N, H, W)`, none of them empty.
        category_ids: Integers `(N,)`, as in the annotation file (LVIS counts from 1).
        boxes_xyxy: Float `(N, 4)`, absolute pixels, far edge exclusive; the tight boxes of
            `masks` if not given.
        instance_ids: One entry per instance: the pool's instance id, or None for a real one.
            All real if not given.

    Raises:
        TypeError: An array has the wrong dtype.
        ValueError: Shapes disagree, a mask is empty, or a box is not finite.
    """

    __slots__ = ("boxes_xyxy", "category_ids", "image", "instance_ids", "masks")

    image: ByteArray
    masks: BoolArray
    boxes_xyxy: FloatArray
    category_ids: IntArray
    instance_ids: list[str | None]

    def __init__(
        self,
        image: npt.NDArray[np.uint8],
        masks: npt.NDArray[np.bool_],
        category_ids: npt.ArrayLike,
        *,
        boxes_xyxy: npt.ArrayLike | None = None,
        instance_ids: Sequence[str | None] | None = None,
    ) -> None:
        _check_image(image)
        _check_masks(masks, image.shape[:2])
        n = len(masks)
        ids = np.asarray(category_ids)
        if ids.shape != (n,):
            raise ValueError(
                f"`category_ids` must have shape ({n},), one per mask, got {ids.shape}"
            )
        if n and not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"`category_ids` must be integers, got {ids.dtype}")
        self.image = image
        self.masks = masks
        self.category_ids = ids.astype(np.int64)
        self.boxes_xyxy = _checked_boxes(boxes_xyxy, masks)
        self.instance_ids = [None] * n if instance_ids is None else list(instance_ids)
        if len(self.instance_ids) != n:
            raise ValueError(
                f"`instance_ids` must have {n} entries, one per mask, got {len(self.instance_ids)}"
            )

    @property
    def image_hw(self) -> tuple[int, int]:
        """Give the image's height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def __len__(self) -> int:
        return len(self.masks)


def _check_image(image: object) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"`image` must be a uint8 RGB array (H, W, 3), got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"`image` must have shape (H, W, 3) and pixels, got {image.shape}")


def _check_masks(masks: object, image_hw: tuple[int, ...]) -> None:
    if not isinstance(masks, np.ndarray) or masks.dtype != np.bool_:
        kind = masks.dtype if isinstance(masks, np.ndarray) else type(masks).__name__
        raise TypeError(f"`masks` must be a bool array (N, H, W), got {kind}")
    if masks.ndim != 3 or masks.shape[1:] != image_hw:
        raise ValueError(
            f"`masks` must have shape (N, {image_hw[0]}, {image_hw[1]}) to fit the image, "
            f"got {masks.shape}"
        )
    empty = [i for i, mask in enumerate(masks) if not mask.any()]
    if empty:
        raise ValueError(f"`masks` {empty[:10]} have no pixel; leave such instances out")


def _checked_boxes(boxes_xyxy: npt.ArrayLike | None, masks: BoolArray) -> FloatArray:
    if boxes_xyxy is None:
        return tight_boxes_xyxy(masks)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.shape != (len(masks), 4):
        raise ValueError(
            f"`boxes_xyxy` must have shape ({len(masks)}, 4), one per mask, got {boxes.shape}"
        )
    if not np.isfinite(boxes).all():
        raise ValueError("`boxes_xyxy` must be finite")
    return boxes
