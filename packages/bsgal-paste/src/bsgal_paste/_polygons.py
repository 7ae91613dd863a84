"""Write masks as polygons, for frameworks that read nothing else."""

from __future__ import annotations

import cv2
import numpy as np

from bsgal_paste._arrays import BoolArray


def mask_to_polygons(mask: BoolArray) -> list[list[float]]:
    """Trace the outline of each part of a mask along the edges of its pixels.

    Polygons cannot have holes, so holes are filled. Without holes, drawing the polygons with
    pycocotools gives the mask again, pixel by pixel.

    Args:
        mask: Bool `(H, W)`.

    Returns:
        One list x1, y1, x2, y2, ... in absolute pixels per part, each of at least four points;
        empty for an empty mask.
    """
    # OpenCV's contours go through pixel centres. On a grid twice as fine the left centre of a
    # pixel rounds to its left edge and the right centre to its right edge.
    fine = np.repeat(np.repeat(mask.view(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        points = (contour[:, 0].astype(np.int64) + 1) // 2
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
        polygons.append([float(value) for value in points[turns].ravel()])
    return polygons
