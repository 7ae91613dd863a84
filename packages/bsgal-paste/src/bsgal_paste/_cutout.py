"""An instance at its final size and place over a target image, ready to paste."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bsgal_paste._annotated_image import Origin
from bsgal_paste._arrays import BoolArray, ByteArray
from bsgal_paste._region import Region


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """Hold the part of a placed instance that lies inside the target image.

    Attributes:
        rgb: uint8 `(h, w, 3)`, contiguous.
        alpha: uint8 `(h, w)`.
        label_mask: Bool `(h, w)`, contiguous: the pixels that count as the object.
        rows: Rows of the target that the cutout covers.
        columns: Columns of the target that the cutout covers.
        full_area_px: Label-mask pixels of the whole instance, inside the image or not.
        category_id: Category of the instance.
        instance_id: Its id in the pool, or what the donor image calls it.
        origin: `pool`, or `self` for one copied from another annotated image.
    """

    rgb: ByteArray
    alpha: ByteArray
    label_mask: BoolArray
    rows: slice
    columns: slice
    full_area_px: int
    category_id: int
    instance_id: str
    origin: Origin = "pool"

    def region(self) -> Region:
        """Give window and label mask, as arrays that may be changed."""
        return Region(self.rows, self.columns, self.label_mask.copy())


_LARGE_PX = 256


def place(
    rgba: ByteArray,
    label_mask_threshold: int,
    *,
    left_px: int,
    top_px: int,
    image_hw: tuple[int, int],
    category_id: int,
    instance_id: str,
    origin: Origin = "pool",
) -> Cutout | None:
    """Cut an instance to the target image.

    Args:
        rgba: uint8 `(h, w, 4)`, at its final size.
        label_mask_threshold: A pixel belongs to the object where alpha >= this, 0-255.
        left_px: Column of the instance's left edge; may be outside the image.
        top_px: Row of its top edge; may be outside the image.
        image_hw: Height and width of the target.
        category_id: Category of the instance.
        instance_id: Its id.
        origin: Where it comes from.

    Returns:
        The cutout, or None if no pixel of the label mask lies inside the image.
    """
    height, width = rgba.shape[:2]
    rows = slice(max(top_px, 0), min(top_px + height, image_hw[0]))
    columns = slice(max(left_px, 0), min(left_px + width, image_hw[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    alpha = np.asarray(cv2.extractChannel(rgba, 3), dtype=np.uint8)
    label_mask = alpha >= label_mask_threshold
    inside = (
        slice(rows.start - top_px, rows.stop - top_px),
        slice(columns.start - left_px, columns.stop - left_px),
    )
    if not label_mask[inside].any():
        return None
    return Cutout(
        rgb=np.asarray(cv2.cvtColor(rgba[inside], cv2.COLOR_RGBA2RGB), dtype=np.uint8),
        alpha=alpha[inside],
        label_mask=np.ascontiguousarray(label_mask[inside]),
        rows=rows,
        columns=columns,
        full_area_px=int(np.count_nonzero(label_mask)),
        category_id=category_id,
        instance_id=instance_id,
        origin=origin,
    )


def weighted_by_alpha(rgba: ByteArray) -> ByteArray:
    """Multiply colours by alpha, so that what lies under transparent pixels cannot bleed.

    Args:
        rgba: uint8 `(h, w, 4)`, straight alpha.

    Returns:
        uint8 `(h, w, 4)`.
    """
    weighted = cv2.cvtColor(np.ascontiguousarray(rgba), cv2.COLOR_RGBA2mRGBA)
    return np.asarray(weighted, dtype=np.uint8)


def reshape_weighted(
    weighted: ByteArray,
    width_px: int,
    height_px: int,
    *,
    angle_deg: float = 0.0,
    flip: bool = False,
) -> ByteArray:
    """Resize, turn and mirror an image whose colours are weighted by alpha; undo the weighting.

    Args:
        weighted: uint8 `(h, w, 4)`, from `weighted_by_alpha`.
        width_px: Width before turning.
        height_px: Height before turning.
        angle_deg: Turn about the centre, counter-clockwise in degrees, before mirroring.
        flip: Mirror left to right.

    Returns:
        uint8 `(height_px, width_px, 4)`, straight alpha; turned, the box of what is not fully
        transparent (one pixel if nothing is). Colour 0 where alpha is 0.
    """
    weighted = shrink_or_enlarge(weighted, width_px, height_px)
    if angle_deg:
        weighted = _turned(weighted, angle_deg)
    if flip:
        weighted = np.asarray(cv2.flip(weighted, 1), dtype=np.uint8)
    return np.asarray(cv2.cvtColor(weighted, cv2.COLOR_mRGBA2RGBA), dtype=np.uint8)


def size_before_turning(
    rgba: ByteArray, box_wh: tuple[int, int], angle_deg: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the size at which an object, once turned, has a box of the area that it would have had.

    Args:
        rgba: uint8 `(h, w, 4)`, of any size.
        box_wh: Width and height of the box if the object were not turned.
        angle_deg: The turn.

    Returns:
        Width and height before turning, and of the box after it, in whole pixels rounded down.
    """
    outline = cv2.findNonZero(cv2.extractChannel(rgba, 3))
    if outline is None:
        return box_wh, box_wh
    scale = np.array(box_wh) / (rgba.shape[1], rgba.shape[0])
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    # The turned centres of the outermost pixels, and half a pixel around each.
    centres = cv2.convexHull(outline).reshape(-1, 2) * scale @ turn.T
    turned_wh = np.ptp(centres, axis=0) + np.abs(turn) @ scale
    factor = np.sqrt(box_wh[0] * box_wh[1] / np.prod(turned_wh))
    (width, height), (box_width, box_height) = (
        (wh * factor).astype(int).tolist() for wh in (np.array(box_wh), turned_wh)
    )
    return (width, height), (box_width, box_height)


def shrink_or_enlarge(image: ByteArray, width_px: int, height_px: int) -> ByteArray:
    """Resize by bilinear steps of at most a factor of two, which average what they shrink.

    As good as averaging areas, and several times faster in OpenCV.

    Args:
        image: uint8 `(h, w)` or `(h, w, c)`.
        width_px: New width.
        height_px: New height.
    """
    height, width = image.shape[:2]
    while width > 2 * width_px or height > 2 * height_px:
        if min(height, width) >= _LARGE_PX and width >= 2 * width_px and height >= 2 * height_px:
            # Of even size OpenCV halves an image in half the time; the last row or column of a
            # large one can be spared.
            height, width = height // 2 * 2, width // 2 * 2
            image = image[:height, :width]
        width, height = max(-(-width // 2), width_px), max(-(-height // 2), height_px)
        image = np.asarray(cv2.resize(image, (width, height)), dtype=np.uint8)
    if (width, height) != (width_px, height_px):
        image = np.asarray(cv2.resize(image, (width_px, height_px)), dtype=np.uint8)
    return image


def _turned(weighted: ByteArray, angle_deg: float) -> ByteArray:
    height, width = weighted.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle_deg, 1.0)
    across = np.abs(turn[:, :2]) @ (width, height)
    new_width, new_height = (int(np.ceil(side)) + 2 for side in across)
    turn[:, 2] += (new_width - width) / 2, (new_height - height) / 2
    turned = np.asarray(cv2.warpAffine(weighted, turn, (new_width, new_height)), dtype=np.uint8)
    x, y, box_width, box_height = cv2.boundingRect(cv2.extractChannel(turned, 3))
    return turned[y : y + max(box_height, 1), x : x + max(box_width, 1)]
