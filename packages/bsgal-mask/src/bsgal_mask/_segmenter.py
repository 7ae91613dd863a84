"""The one interface behind which every way to find the object stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
SoftMask: TypeAlias = NDArray[np.float32]


class Segmenter(Protocol):
    """Find the one object of each image."""

    @property
    def name(self) -> str:
        """Name in the manifest; two methods of one run have different names."""

    def segment(self, images: Sequence[Image], category_names: Sequence[str]) -> list[SoftMask]:
        """Return how surely each pixel belongs to the object.

        Args:
            images: uint8 RGB arrays (H, W, 3), each of any size; not changed.
            category_names: what each image should show, one name per image. Methods that know
                no words ignore it.

        Returns:
            One float32 array (H, W) in [0, 1] per image, all zero where nothing was found. An
            image's mask does not depend on the other images of the call.

        Raises:
            SegmentationError: An image of the call could not be segmented.
        """

    def config(self) -> Mapping[str, Any]:
        """Return everything that decides the masks, as JSON values, for the pool's `meta.json`."""


def without_alpha(image: Image) -> Image:
    """Return the colours (H, W, 3) of an image, RGB or RGBA."""
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., :3])


def check_images(images: Sequence[Image], category_names: Sequence[str]) -> None:
    """Raise `ValueError` unless the arguments of `Segmenter.segment` are as documented."""
    if len(images) != len(category_names):
        raise ValueError(
            f"`category_names` must hold one name per image, got {len(category_names)} names "
            f"for {len(images)} images"
        )
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"`images[{index}]` must be uint8 RGB of shape (H, W, 3), "
                f"got {image.dtype} {image.shape}"
            )
