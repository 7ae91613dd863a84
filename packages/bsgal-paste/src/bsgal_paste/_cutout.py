"""An instance resized and placed over a target image, ready to paste."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bsgal_paste._arrays import BoolArray, ByteArray


@dataclass(frozen=True, slots=True)
class Cutout:
    """Hold the part of a placed instance that lies inside the target image.

    Attributes:
        rgb: uint8 `(h, w, 3)`.
        alpha: uint8 `(h, w)`.
        label_mask: Bool `(h, w)`: the pixels that count as the object.
        rows: Rows of the target that the cutout covers.
        columns: Columns of the target that the cutout covers.
        full_area_px: Label-mask pixels of the whole instance, inside the image or not.
        category_id: Category of the instance.
        instance_id: Its id in the pool.
    """

    rgb: ByteArray
    alpha: ByteArray
    label_mask: BoolArray
    rows: slice
    columns: slice
    full_area_px: int
    category_id: int
    instance_id: str


def place(
    rgba: ByteArray,
    label_mask: BoolArray,
    *,
    left_px: int,
    top_px: int,
    image_hw: tuple[int, int],
    category_id: int,
    instance_id: str,
) -> Cutout | None:
    """Cut an instance to the target image.

    Args:
        rgba: uint8 `(h, w, 4)`, at its final size.
        label_mask: Bool `(h, w)`.
        left_px: Column of the instance's left edge; may be outside the image.
        top_px: Row of its top edge; may be outside the image.
        image_hw: Height and width of the target.
        category_id: Category of the instance.
        instance_id: Its id in the pool.

    Returns:
        The cutout, or None if no pixel of the label mask lies inside the image.
    """
    height, width = label_mask.shape
    rows = slice(max(top_px, 0), min(top_px + height, image_hw[0]))
    columns = slice(max(left_px, 0), min(left_px + width, image_hw[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    inside = (
        slice(rows.start - top_px, rows.stop - top_px),
        slice(columns.start - left_px, columns.stop - left_px),
    )
    if not label_mask[inside].any():
        return None
    return Cutout(
        rgb=rgba[inside][..., :3],
        alpha=rgba[inside][..., 3],
        label_mask=label_mask[inside],
        rows=rows,
        columns=columns,
        full_area_px=int(np.count_nonzero(label_mask)),
        category_id=category_id,
        instance_id=instance_id,
    )


def resize_rgba(rgba: ByteArray, width_px: int, height_px: int) -> ByteArray:
    """Resize an image with straight alpha.

    Colours are weighted by alpha, so that what lies under transparent pixels does not bleed
    into the edge.

    Args:
        rgba: uint8 `(h, w, 4)`.
        width_px: New width.
        height_px: New height.

    Returns:
        uint8 `(height_px, width_px, 4)`; colour 0 where alpha is 0.
    """
    shrinks = width_px * height_px < rgba.shape[0] * rgba.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    weighted = rgba.astype(np.float32)
    weighted[..., :3] *= weighted[..., 3:]
    resized = cv2.resize(weighted, (width_px, height_px), interpolation=interpolation)
    alpha = resized[..., 3:]
    np.divide(resized[..., :3], alpha, out=resized[..., :3], where=alpha > 0)
    return np.asarray(np.rint(resized), dtype=np.uint8)
