"""An image with its instances: the input of every paste."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import BoolArray, ByteArray, FloatArray, IntArray
from bsgal_paste._region import Region

Origin: TypeAlias = Literal["real", "pool", "self"]
"""Where an instance comes from: annotated in its image, pasted from the pool, or copied from
another annotated image."""


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


def has_area_inside(boxes_xyxy: FloatArray, image_hw: tuple[int, int]) -> BoolArray:
    """Say which boxes `(N, 4)` have some area inside an image, bool `(N,)`."""
    height, width = image_hw
    low = np.maximum(boxes_xyxy[:, :2], 0)
    high = np.minimum(boxes_xyxy[:, 2:], [width, height])
    return np.asarray((high > low).all(axis=1))


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
        origins: Where each instance comes from; `real` where the instance id is None and `pool`
            elsewhere if not given.
        boxes_only: The masks are filled boxes, see `from_boxes`.

    Raises:
        TypeError: An array has the wrong dtype.
        ValueError: Shapes disagree, a mask is empty, or a box is not finite.
    """

    __slots__ = (
        "boxes_only", "boxes_xyxy", "category_ids", "image", "instance_ids", "masks", "origins",
        "regions",
    )  # fmt: skip

    image: ByteArray
    masks: BoolArray
    boxes_xyxy: FloatArray
    category_ids: IntArray
    instance_ids: list[str | None]
    origins: list[Origin]
    boxes_only: bool
    regions: tuple[Region, ...]

    def __init__(
        self,
        image: npt.NDArray[np.uint8],
        masks: npt.NDArray[np.bool_],
        category_ids: npt.ArrayLike,
        *,
        boxes_xyxy: npt.ArrayLike | None = None,
        instance_ids: Sequence[str | None] | None = None,
        origins: Sequence[Origin] | None = None,
        boxes_only: bool = False,
    ) -> None:
        _check_image(image)
        self.regions = _checked_regions(masks, image.shape[:2])
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
        self.boxes_xyxy = self._checked_boxes(boxes_xyxy)
        self.instance_ids = [None] * n if instance_ids is None else list(instance_ids)
        if origins is None:
            self.origins = ["real" if i is None else "pool" for i in self.instance_ids]
        else:
            self.origins = list(origins)
        for name, entries in (("instance_ids", self.instance_ids), ("origins", self.origins)):
            if len(entries) != n:
                raise ValueError(
                    f"`{name}` must have {n} entries, one per mask, got {len(entries)}"
                )
        self.boxes_only = boxes_only

    @classmethod
    def from_boxes(
        cls,
        image: npt.NDArray[np.uint8],
        boxes_xyxy: npt.ArrayLike,
        category_ids: npt.ArrayLike,
    ) -> AnnotatedImage:
        """Build an image whose instances have boxes and no masks.

        Each box is taken for its object: what a paste covers of it counts as hidden, and the box
        shrinks to what is left. Instances cannot be copied out of such an image.

        Args:
            image: uint8 RGB `(H, W, 3)`.
            boxes_xyxy: Float `(N, 4)`, absolute pixels, far edge exclusive.
            category_ids: Integers `(N,)`.

        Raises:
            TypeError: An array has the wrong dtype.
            ValueError: Shapes disagree, or a box has no area inside the image.
        """
        _check_image(image)
        boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(boxes).all():
            raise ValueError("`boxes_xyxy` must be finite")
        masks = np.zeros((len(boxes), *image.shape[:2]), dtype=bool)
        for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
            if right > left and bottom > top:
                columns = slice(max(int(np.floor(left)), 0), max(int(np.ceil(right)), 0))
                masks[i, max(int(np.floor(top)), 0) : max(int(np.ceil(bottom)), 0), columns] = True
            if not masks[i].any():
                raise ValueError(
                    f"`boxes_xyxy[{i}]` {boxes[i].tolist()} has no area inside the image of "
                    f"{image.shape[1]} x {image.shape[0]} px; leave such instances out"
                )
        return cls(image, masks, category_ids, boxes_xyxy=boxes, boxes_only=True)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Give the image's height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def __len__(self) -> int:
        return len(self.masks)

    def _checked_boxes(self, boxes_xyxy: npt.ArrayLike | None) -> FloatArray:
        n = len(self.regions)
        if boxes_xyxy is None:
            return np.array([region.box_xyxy() for region in self.regions], dtype=float).reshape(
                n, 4
            )
        boxes = np.asarray(boxes_xyxy, dtype=np.float64)
        if boxes.shape != (n, 4):
            raise ValueError(
                f"`boxes_xyxy` must have shape ({n}, 4), one per mask, got {boxes.shape}"
            )
        if not np.isfinite(boxes).all():
            raise ValueError("`boxes_xyxy` must be finite")
        return boxes


def _check_image(image: object) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"`image` must be a uint8 RGB array (H, W, 3), got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"`image` must have shape (H, W, 3) and pixels, got {image.shape}")


def _checked_regions(masks: object, image_hw: tuple[int, ...]) -> tuple[Region, ...]:
    if not isinstance(masks, np.ndarray) or masks.dtype != np.bool_:
        kind = masks.dtype if isinstance(masks, np.ndarray) else type(masks).__name__
        raise TypeError(
            f"`masks` must be a bool array (N, H, W), got {kind}; for annotations without masks "
            "use `AnnotatedImage.from_boxes`"
        )
    if masks.ndim != 3 or masks.shape[1:] != image_hw:
        raise ValueError(
            f"`masks` must have shape (N, {image_hw[0]}, {image_hw[1]}) to fit the image, "
            f"got {masks.shape}"
        )
    regions = tuple(Region.of(mask) for mask in masks)
    empty = [i for i, region in enumerate(regions) if not region.mask.size]
    if empty:
        raise ValueError(f"`masks` {empty[:10]} have no pixel; leave such instances out")
    return regions
