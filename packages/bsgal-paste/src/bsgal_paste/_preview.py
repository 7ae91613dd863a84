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
    """Draw a result with the outline, box and name of each instance, real ones blue, pasted orange.

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
    for i, pasted in enumerate(result.is_pasted):
        colour = PASTED_RGB if pasted else REAL_RGB
        mask = result.masks[i].view(np.uint8)
        mask = cv2.resize(mask, size_wh, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 1)
        left, top, right, bottom = (round(float(side) * zoom) for side in result.boxes_xyxy[i])
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, 1)
        if pasted:
            category_id = int(result.category_ids[i])
            name = category_names.get(category_id, str(category_id))
            _write(picture, name, (left + 2, max(top - 3, 9)), colour)
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


def _write(
    picture: ByteArray, text: str, origin_xy: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    for thickness, ink in ((3, (0, 0, 0)), (1, colour)):
        cv2.putText(
            picture, text, origin_xy, cv2.FONT_HERSHEY_SIMPLEX, 0.38, ink, thickness, cv2.LINE_AA
        )
