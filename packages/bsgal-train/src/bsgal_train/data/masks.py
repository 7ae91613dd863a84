"""Draw annotated segmentations into a crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from bsgal_train.annotations import ImageRecord
from bsgal_train.data.crop import CropWindow

__all__ = ["crop_masks"]

BoolArray = npt.NDArray[np.bool_]


def crop_masks(record: ImageRecord, window: CropWindow) -> tuple[BoolArray, npt.NDArray[np.int64]]:
    """Draw the masks of an image's instances as a crop shows them.

    Polygons are drawn at the crop's resolution; run-length encodings are resized.

    Returns:
        Masks, bool `(N, h, w)`, none of them empty, and the positions in `record.instances` of
        the N instances that are left, `(N,)`.
    """
    image_hw = record.height, record.width
    masks = np.zeros((len(record.instances), *window.window_hw), dtype=bool)
    left: list[int] = []
    for position, instance in enumerate(record.instances):
        segmentation = instance.segmentation
        mask = (
            _resized(segmentation, image_hw, window)
            if isinstance(segmentation, dict)
            else _polygons(segmentation, image_hw, window)
        )
        if mask is not None and mask.any():
            masks[len(left)] = mask[:, ::-1] if window.flip else mask
            left.append(position)
    return masks[: len(left)], np.array(left, dtype=np.int64)


def _polygons(
    polygons: Sequence[Sequence[float]], image_hw: tuple[int, int], window: CropWindow
) -> BoolArray | None:
    """Draw polygons into the window, not mirrored; None if they lie outside."""
    factor_y, factor_x = (r / s for r, s in zip(window.resized_hw, image_hw, strict=True))
    points = [
        np.asarray(polygon).reshape(-1, 2) * (factor_x, factor_y) - (window.left_px, window.top_px)
        for polygon in polygons
    ]
    lowest = np.min([part.min(axis=0) for part in points], axis=0)
    highest = np.max([part.max(axis=0) for part in points], axis=0)
    height, width = window.window_hw
    if (highest <= 0).any() or lowest[0] >= width or lowest[1] >= height:
        return None
    # pycocotools rounds negative coordinates another way: move all to where they are positive.
    shift = np.maximum(0, np.ceil(-lowest)).astype(np.int64)
    parts = [(part + shift).ravel().tolist() for part in points]
    encoded = coco_mask.merge(coco_mask.frPyObjects(parts, height + shift[1], width + shift[0]))
    drawn: BoolArray = coco_mask.decode(encoded)[shift[1] :, shift[0] :].view(bool)
    return drawn


def _resized(rle: dict[str, Any], image_hw: tuple[int, int], window: CropWindow) -> BoolArray:
    """Decode, resize and cut a run-length encoding, not mirrored."""
    if isinstance(rle["counts"], list):
        rle = coco_mask.frPyObjects(rle, *image_hw)
    whole: npt.NDArray[np.uint8] = coco_mask.decode(rle)
    if image_hw == window.resized_hw:
        return whole[window.rows, window.columns].view(bool)
    # A pixel belongs to the object if at least half of it does.
    unmirrored = CropWindow(
        window.resized_hw, window.top_px, window.left_px, window.window_hw, flip=False
    )
    return unmirrored.apply(whole * np.uint8(255)) >= 128
