"""Where the pixels of pool instances come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from bsgal_paste._arrays import ByteArray
from bsgal_paste._pool_index import PoolIndex
from bsgal_paste.errors import CorruptInstanceError


class InstanceImages(Protocol):
    """Read instance images by row of the index."""

    @property
    def location(self) -> str | None:
        """Give the folder the images are in, if any."""

    def read(self, row: int) -> ByteArray:
        """Read one image: uint8 RGBA `(h, w, 4)`."""


class FileImages:
    """Read RGBA image files below a pool's folder."""

    def __init__(self, root: Path, index: PoolIndex, max_image_pixels: int) -> None:
        if max_image_pixels < 1:
            raise ValueError(f"`max_image_pixels` must be positive, got {max_image_pixels}")
        self._root = root
        self._index = index
        self._max_image_pixels = max_image_pixels

    @property
    def location(self) -> str | None:
        """Give the pool's folder."""
        return str(self._root)

    def read(self, row: int) -> ByteArray:
        """Read one image.

        Raises:
            CorruptInstanceError: The file is missing, outside the folder, truncated, too large
                or not RGBA.
        """
        path = self._root / self._index.files[row]
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise self._corrupt(row, "the file lies outside the pool's folder")
        try:
            with Image.open(path) as image:
                width, height = image.size
                if width * height > self._max_image_pixels:
                    raise self._corrupt(
                        row,
                        f"{width} x {height} px is over the limit of {self._max_image_pixels} "
                        "pixels (`max_image_pixels`)",
                    )
                if image.mode != "RGBA":
                    raise self._corrupt(row, f"the image must be RGBA, it is {image.mode}")
                return np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._corrupt(row, str(error)) from error

    def _corrupt(self, row: int, problem: str) -> CorruptInstanceError:
        instance_id = self._index.instance_ids[row]
        return CorruptInstanceError(
            instance_id,
            f"instance {instance_id!r} (line {self._index.lines[row]} of "
            f"{self._root / 'manifest.jsonl'}) cannot be read from "
            f"{self._root / self._index.files[row]}: {problem}",
        )


class ArrayImages:
    """Hand out images that are in memory already."""

    def __init__(self, rgba_images: Sequence[npt.NDArray[np.uint8]]) -> None:
        for position, rgba in enumerate(rgba_images):
            if not isinstance(rgba, np.ndarray) or rgba.dtype != np.uint8:
                raise TypeError(f"`rgba_images[{position}]` must be a uint8 array (h, w, 4)")
            if rgba.ndim != 3 or rgba.shape[2] != 4 or 0 in rgba.shape:
                raise ValueError(
                    f"`rgba_images[{position}]` must have shape (h, w, 4), got {rgba.shape}"
                )
        self._rgba_images = list(rgba_images)

    @property
    def location(self) -> str | None:
        """Give None: there is no folder."""
        return None

    def read(self, row: int) -> ByteArray:
        """Give one image, not copied."""
        return self._rgba_images[row]
