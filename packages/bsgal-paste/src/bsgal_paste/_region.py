"""The part of an image that one instance takes up: a window, and the mask inside it.

Objects are small and images are not, so masks are worked on inside their windows and written to
full size once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bsgal_paste._arrays import BoolArray


@dataclass(frozen=True, slots=True)
class Region:
    """Hold a window of an image and a mask in it.

    Attributes:
        rows: Rows of the image, inside it.
        columns: Columns of the image, inside it.
        mask: Bool `(h, w)`, contiguous.
    """

    rows: slice
    columns: slice
    mask: BoolArray

    @classmethod
    def of(cls, mask: BoolArray) -> Region:
        """Cut the smallest window out of a full mask `(H, W)`; empty if the mask is."""
        x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
        rows, columns = slice(y, y + height), slice(x, x + width)
        return cls(rows, columns, mask[rows, columns].copy())

    @property
    def window(self) -> tuple[slice, slice]:
        """Give the index of the window in an array of the image's size."""
        return self.rows, self.columns

    def copy(self) -> Region:
        """Give the region with a mask of its own."""
        return Region(self.rows, self.columns, self.mask.copy())

    def area_px(self) -> int:
        """Count the pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Give the tight box of the mask in the image, far edge exclusive; zeros if empty."""
        x, y, width, height = cv2.boundingRect(self.mask.view(np.uint8))
        if not width:
            return 0, 0, 0, 0
        x, y = x + self.columns.start, y + self.rows.start
        return x, y, x + width, y + height

    def overlap(self, other: Region) -> tuple[BoolArray, BoolArray] | None:
        """Give views of both masks where their windows overlap, or None where they do not."""
        top, bottom = max(self.rows.start, other.rows.start), min(self.rows.stop, other.rows.stop)
        left = max(self.columns.start, other.columns.start)
        right = min(self.columns.stop, other.columns.stop)
        if top >= bottom or left >= right:
            return None
        mine, theirs = (
            region.mask[
                top - region.rows.start : bottom - region.rows.start,
                left - region.columns.start : right - region.columns.start,
            ]
            for region in (self, other)
        )
        return mine, theirs
