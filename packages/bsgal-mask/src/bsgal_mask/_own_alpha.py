"""Take the alpha that an image came with for its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bsgal_mask._segmenter import Image, SoftMask
from bsgal_mask.errors import SegmentationError


class AlphaSegmenter:
    """Find nothing, but take the alpha of images whose pipeline drew it.

    It alone is given such images as RGBA. Its mask is the object's coverage already, and the
    colours are the object's own, so `Edges` changes neither.
    """

    name: ClassVar[str] = "alpha"

    def segment(self, images: Sequence[Image], category_names: Sequence[str]) -> list[SoftMask]:
        """Return each image's alpha.

        Args:
            images: uint8 RGBA arrays (H, W, 4).
            category_names: Ignored.

        Returns:
            One float32 array (H, W) in [0, 1] per image.

        Raises:
            SegmentationError: An image has no alpha.
        """
        if any(image.shape[2] != 4 for image in images):
            raise SegmentationError("the image has no alpha; choose another method")
        return [np.divide(image[..., 3], 255, dtype=np.float32) for image in images]

    def config(self) -> Mapping[str, Any]:
        """Return nothing: there is nothing to set."""
        return {}
