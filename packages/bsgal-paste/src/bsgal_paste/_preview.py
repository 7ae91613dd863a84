"""Draw annotated images, and many of them on one sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from bsgal_paste._apply import PasteResult
from bsgal_paste._arrays import ByteArray

REAL_RGB = (80, 160, 255)
PASTED_RGB = (255, 140, 0)


def draw_result(
    result: PasteResult, category_names: Mapping[int, str], *, tile_px: int
) -> ByteArray:
    """Draw a result: the outline, box and name of each instance, real ones blue, pasted orange.

    Args:
        result: What to draw.
        category_names: Name per category id.
        tile_px: Longer side of the picture.

    Returns:
        uint8 RGB, the longer side `tile_px`.
    """
    height, width = result.image.shape[:2]
    zoom = tile_px / max(height, width)
    size_wh = max(round(width * zoom), 1), max(round(height * zoom), 1)
    picture = cv2.resize(result.image, size_wh, interpolation=cv2.INTER_AREA)
    colours = [PASTED_RGB if pasted else REAL_RGB for pasted in result.is_pasted]
    boxes = np.rint(result.boxes_xyxy * zoom).astype(int).tolist()
    for full_mask, (left, top, right, bottom), colour in zip(
        result.masks, boxes, colours, strict=True
    ):
        mask = cv2.resize(full_mask.view(np.uint8), size_wh, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 1)
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, 1)
    # Last, so that no outline crosses them.
    for category_id, (left, top, _, _), colour in zip(
        result.category_ids.tolist(), boxes, colours, strict=True
    ):
        _label(picture, category_names.get(category_id, str(category_id)), (left, top), colour)
    return np.asarray(picture, dtype=np.uint8)


def contact_sheet(tiles: Sequence[ByteArray], *, tile_px: int, n_columns: int) -> ByteArray:
    """Lay pictures out in rows.

    Args:
        tiles: uint8 RGB pictures, no side longer than `tile_px`; at least one.
        tile_px: Side of a place.
        n_columns: Places in a row.

    Returns:
        uint8 RGB.

    Raises:
        ValueError: There is no picture.
    """
    if not tiles:
        raise ValueError("`tiles` is empty; a sheet needs at least one picture")
    gap = 6
    pitch = tile_px + gap
    n_rows = -(-len(tiles) // n_columns)
    shape = n_rows * pitch + gap, min(n_columns, len(tiles)) * pitch + gap, 3
    sheet = np.full(shape, 245, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top = gap + i // n_columns * pitch + (tile_px - tile.shape[0]) // 2
        left = gap + i % n_columns * pitch + (tile_px - tile.shape[1]) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _label(
    picture: ByteArray, text: str, box_xy: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Write black on a plate of the colour, which can be read on any photograph.

    The plate stands on the box's upper edge, moved into the picture where it would leave it.
    """
    font, size, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.38, 2
    (width, height), below = cv2.getTextSize(text, font, size, 1)
    width, height = width + 2 * pad, height + below + 2 * pad
    left = max(min(box_xy[0], picture.shape[1] - width), 0)
    top = max(box_xy[1] - height, 0)
    cv2.rectangle(picture, (left, top), (left + width - 1, top + height - 1), colour, cv2.FILLED)
    origin = left + pad, top + height - below - pad
    cv2.putText(picture, text, origin, font, size, (0, 0, 0), 1, cv2.LINE_AA)
