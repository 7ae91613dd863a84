"""Check boxes and segmentations before anything computes with them.

pycocotools draws whatever it is given: a coordinate of 1e9 ends the process, one that is no number
takes all memory, and a run-length encoding that was cut off gives pixels out of memory that nobody
wrote. What passes here is safe to hand on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from reprlib import repr as shortened
from typing import Any

import numpy as np

from bsgal_paste._arrays import IntArray
from bsgal_paste.errors import AnnotationError

# pycocotools holds about 80 bytes per pixel of outline.
MAX_OUTLINE_PX = 4_000_000

_NUMBER_TYPES = {int, float}
# Six characters hold a run of 2**29 pixels; pycocotools shifts a seventh out of its integers.
_MAX_CHARACTERS_PER_RUN = 6


def check_box(box_xywh: object, image_hw: tuple[int, int], where: str) -> None:
    """Check that a box of an annotation is one, and lies in or around its image.

    Args:
        box_xywh: `[x, y, width, height]` in absolute pixels, as parsed from JSON. Each corner may
            lie outside of the image by at most the length of the image's longer side. A box
            without area passes.
        image_hw: Height and width of the image.
        where: File and entry, for the message.

    Raises:
        AnnotationError: It is no list of four finite numbers, width or height are negative, or it
            lies too far outside.
    """
    if not isinstance(box_xywh, Sequence) or len(box_xywh) != 4 or not _are_numbers(box_xywh):
        raise AnnotationError(
            f"{where}: bbox must be [x, y, width, height], four numbers, got {shortened(box_xywh)}"
        )
    left, top, width, height = box_xywh
    low, high = _bounds(image_hw)
    # Comparisons with NaN are false, so each is written to hold for a good box.
    if not (width >= 0 and height >= 0):
        raise AnnotationError(
            f"{where}: bbox must be [x, y, width, height] with a width and height of at least 0, "
            f"got {shortened(box_xywh)}"
        )
    inside = low <= min(left, top) and max(left, top) <= high
    if not (inside and width <= high - left and height <= high - top):
        raise AnnotationError(
            f"{where}: bbox must be [x, y, width, height] within {low} to {high} px, the image of "
            f"{image_hw[1]} x {image_hw[0]} px and its longer side around it, got "
            f"{shortened(box_xywh)}"
        )


def check_segmentation(
    segmentation: object, image_hw: tuple[int, int], where: str, *, margin: int = 1
) -> None:
    """Check polygons or a run-length encoding in full, before C code sees them.

    Args:
        segmentation: As parsed from JSON: polygons `[[x1, y1, x2, y2, ...], ...]` in absolute
            pixels, each of at least three points and each coordinate outside of the image by at
            most `margin` times the length of its longer side; or COCO run lengths
            `{"size": [height, width], "counts": ...}`, compressed (text or bytes) or a list of
            integers, that add up to the image's pixels.
        image_hw: Height and width of the image.
        where: File and entry, for the message.
        margin: How far outside a polygon may reach, in longer sides of the image. Annotations that
            a crop has enlarged need more than those of a file.

    Raises:
        AnnotationError: It is neither, or is damaged in any way.
    """
    if isinstance(segmentation, Mapping):
        _check_run_lengths(segmentation, image_hw, where)
        return
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str | bytes):
        raise AnnotationError(
            f"{where}: malformed segmentation: it must be a list of polygons or run lengths, got "
            f"{shortened(segmentation)}"
        )
    if not segmentation:
        raise AnnotationError(f"{where}: malformed segmentation: it has no polygon")
    low, high = _bounds(image_hw, margin)
    for polygon in segmentation:
        _check_polygon(polygon, low, high, where)


def _bounds(image_hw: tuple[int, int], margin: int = 1) -> tuple[int, int]:
    longer = max(image_hw)
    return -margin * longer, (1 + margin) * longer


def _check_polygon(polygon: object, low: int, high: int, where: str) -> None:
    if not isinstance(polygon, Sequence) or not _are_numbers(polygon):
        raise AnnotationError(
            f"{where}: malformed segmentation: a polygon must be a list of numbers, got "
            f"{shortened(polygon)}"
        )
    if len(polygon) < 6:
        raise AnnotationError(
            f"{where}: a polygon has fewer than three points: {shortened(polygon)}"
        )
    if len(polygon) % 2:
        raise AnnotationError(
            f"{where}: a polygon has {len(polygon)} coordinates, which is no number of points: "
            f"{shortened(polygon)}"
        )
    smallest, largest = min(polygon), max(polygon)
    # The bounds come first: they keep the sum from overflowing, and it finds what they let
    # through, NaN behind a number.
    if not (low <= smallest and largest <= high) or not math.isfinite(sum(polygon)):
        raise AnnotationError(
            f"{where}: the coordinates of a polygon must be finite and within {low} to {high} px, "
            f"the image and what is allowed around it, got {shortened(polygon)}"
        )
    if len(polygon) * (largest - smallest) > MAX_OUTLINE_PX:
        length_px = _outline_px(polygon)
        if length_px > MAX_OUTLINE_PX:
            raise AnnotationError(
                f"{where}: the outline of a polygon is {length_px:.0f} px long, over the limit of "
                f"{MAX_OUTLINE_PX}"
            )


def _outline_px(polygon: Sequence[float]) -> float:
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _check_run_lengths(
    segmentation: Mapping[str, Any], image_hw: tuple[int, int], where: str
) -> None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, Sequence) or [type(n) for n in size] != [int, int]:
        raise AnnotationError(
            f"{where}: malformed segmentation: the `size` of run lengths must be [height, width], "
            f"two integers, got {shortened(size)}"
        )
    if tuple(size) != tuple(image_hw):
        raise AnnotationError(
            f"{where}: the mask has size {tuple(size)}, the image {tuple(image_hw)}"
        )
    if isinstance(counts, str | bytes):
        runs = _decompressed(counts, where)
        smallest, total = int(runs.min()), int(runs.sum())
    elif isinstance(counts, Sequence) and counts and all(type(n) is int for n in counts):
        smallest, total = min(counts), sum(counts)
    else:
        raise AnnotationError(
            f"{where}: malformed segmentation: the `counts` of run lengths must be text or a list "
            f"of integers, got {shortened(counts)}"
        )
    if smallest < 0 or total != image_hw[0] * image_hw[1]:
        raise AnnotationError(
            f"{where}: the run lengths add up to {total} px and the shortest is {smallest}; they "
            f"must not be negative and add up to the image's {image_hw[0]} x {image_hw[1]} px"
        )


def _decompressed(counts: str | bytes, where: str) -> IntArray:
    """Give the runs of compressed COCO counts.

    Each run is written in groups of five bits, low ones first, in characters from "0" on whose
    sixth bit says that the run goes on. From the fourth run on it is the difference to the run
    before the last.
    """
    content = counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")
    codes = np.frombuffer(content, dtype=np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise AnnotationError(
            f"{where}: malformed segmentation: the compressed run lengths are empty, cut off or "
            f"hold foreign characters: {shortened(counts)}"
        )
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS_PER_RUN:
        raise AnnotationError(
            f"{where}: malformed segmentation: a compressed run length has {lengths.max()} "
            f"characters, no image is that large: {shortened(counts)}"
        )
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def is_number(value: object) -> bool:
    """Say whether a value is a number of JSON; a bool is none."""
    return type(value) in _NUMBER_TYPES


def _are_numbers(values: Sequence[object]) -> bool:
    return set(map(type, values)) <= _NUMBER_TYPES
