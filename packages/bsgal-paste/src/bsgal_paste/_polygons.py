"""Write masks as polygons, for frameworks that read nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from bsgal_paste._arrays import BoolArray, IntArray
from bsgal_paste._region import Region


def mask_to_polygons(mask: BoolArray) -> list[list[float]]:
    """Trace the outline of each part of a mask along the edges of its pixels.

    A hole is joined to the outline around it by a vertical line, walked there and back: a line
    covers no pixel, so drawing the polygons with pycocotools gives the mask again, pixel by pixel.

    Args:
        mask: Bool `(H, W)`.

    Returns:
        One list x1, y1, x2, y2, ... in absolute pixels per part, each of at least four points;
        empty for an empty mask.
    """
    region = Region.of(mask)
    if not region.mask.size:
        return []
    corner = np.array([region.columns.start, region.rows.start])
    # OpenCV's contours go through pixel centres. On a grid twice as fine the left centre of a
    # pixel rounds to its left edge and the right centre to its right edge.
    fine = np.repeat(np.repeat(region.mask.view(np.uint8), 2, axis=0), 2, axis=1)
    contours, nesting = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    paths = [_distinct((contour[:, 0].astype(np.int64) + 1) // 2) for contour in contours]
    parents = nesting[0, :, 3].tolist()
    holes: dict[int, list[IntArray]] = {i: [] for i, parent in enumerate(parents) if parent < 0}
    for path, parent in zip(paths, parents, strict=True):
        if parent >= 0:
            holes[parent].append(path)
    return [_corners(_joined(paths[i], inner) + corner) for i, inner in holes.items()]


def _joined(outline: IntArray, holes: Sequence[IntArray]) -> IntArray:
    """Insert a walk to, around and back from each hole into an outline of steps of one pixel."""
    if not holes:
        return outline
    after = np.roll(outline, -1, axis=0)
    level = np.flatnonzero(outline[:, 1] == after[:, 1])
    # Ordered by column of pixels, then from the top down, so that what lies above is one search.
    n_rows = int(outline[:, 1].max()) + 1
    keys = np.minimum(outline[level, 0], after[level, 0]) * n_rows + outline[level, 1]
    order = np.argsort(keys)
    keys, level = keys[order], level[order]
    positions, walks = [], []
    for hole in holes:
        start = int(np.lexsort((hole[:, 0], hole[:, 1]))[0])
        x, y = hole[start].tolist()
        above = int(level[np.searchsorted(keys, x * n_rows + y, side="right") - 1])
        if outline[above, 0] != x:
            above = (above + 1) % len(outline)
        positions.append(above)
        walks.append(
            np.concatenate([np.roll(hole, -start, axis=0), hole[[start]], outline[[above]]])
        )
    pieces = []
    done = 0
    for i in sorted(range(len(holes)), key=positions.__getitem__):
        pieces += [outline[done : positions[i] + 1], walks[i]]
        done = positions[i] + 1
    return np.concatenate([*pieces, outline[done:]])


def _corners(path: IntArray) -> list[float]:
    path = _distinct(path)
    before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return [float(value) for value in path[turns].ravel()]


def _distinct(path: IntArray) -> IntArray:
    """Drop points that equal the one before."""
    distinct: IntArray = path[(path != np.roll(path, 1, axis=0)).any(axis=1)]
    return distinct
