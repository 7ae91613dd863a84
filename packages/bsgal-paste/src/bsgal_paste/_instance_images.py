"""Where the pixels of pool instances come from."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from bsgal_paste._arrays import ByteArray
from bsgal_paste._cutout import weighted_by_alpha
from bsgal_paste._lvis import read_annotated_image
from bsgal_paste._paths import read_file_inside
from bsgal_paste._png import SIGNATURE, check_png, png_size_wh
from bsgal_paste._pool_index import PoolIndex
from bsgal_paste.errors import AnnotationError, CorruptInstanceError


class InstanceImages(Protocol):
    """Read instance images by row of the index."""

    @property
    def location(self) -> str | None:
        """Give the folder the images are in, if any."""

    def read(self, row: int) -> ByteArray:
        """Read one image: uint8 RGBA `(h, w, 4)`."""

    def weighted(self, row: int) -> ByteArray:
        """Read one image with its colours multiplied by its alpha."""

    def file(self, row: int) -> str | None:
        """Give the path of one image's file, if it has one."""


class FileImages:
    """Read RGBA image files below a folder, or pairs `image|mask` as X-Paste's pools have them.

    A file is compared with the hash that the index has of it. A PNG without one is checked itself.

    Args:
        root: The folder.
        index: Names the files.
        max_image_pixels: An image with more pixels than this is refused unread.
        listed_in: The file that lists the images, for messages.

    Raises:
        TypeError: `max_image_pixels` is no integer.
        ValueError: It is not positive.
    """

    def __init__(self, root: Path, index: PoolIndex, max_image_pixels: int, listed_in: str) -> None:
        if type(max_image_pixels) is not int:
            raise TypeError(
                f"`max_image_pixels` must be an int, got {type(max_image_pixels).__name__}"
            )
        if max_image_pixels < 1:
            raise ValueError(f"`max_image_pixels` must be positive, got {max_image_pixels}")
        self._root = root
        self._index = index
        self._max_image_pixels = max_image_pixels
        self._listed_in = listed_in

    @property
    def location(self) -> str | None:
        """Give the pool's folder."""
        return str(self._root)

    def file(self, row: int) -> str:
        """Give the path of an image, or of `image|mask`."""
        return "|".join(str(self._root / part) for part in self._index.files[row].split("|"))

    def read(self, row: int) -> ByteArray:
        """Read one image.

        Raises:
            CorruptInstanceError: The file is missing, outside the folder, truncated, too large,
                not RGBA, or not the one that the index describes.
        """
        image, _, mask = self._index.files[row].partition("|")
        if not mask:
            rgba = self._decode(row, image, ("RGBA",), int(self._index.hashes[row]))
            width, height = self._index.sizes_wh[row].tolist()
            if width and rgba.shape[:2] != (height, width):
                raise self._corrupt(
                    row, image, f"it has {rgba.shape[1]} x {rgba.shape[0]} px, its row says "
                    f"{width} x {height}"
                )  # fmt: skip
            return rgba
        rgb = self._decode(row, image, ("RGB", "RGBA", "L", "P"))
        alpha = self._decode(row, mask, ("L", "1", "RGB"))
        try:
            return cut_out(rgb, alpha)
        except ValueError as error:
            raise self._corrupt(row, mask, str(error)) from error

    def weighted(self, row: int) -> ByteArray:
        """Read one image with its colours multiplied by its alpha.

        Raises:
            CorruptInstanceError: As `read`.
        """
        return weighted_by_alpha(self.read(row))

    def _decode(self, row: int, file: str, modes: tuple[str, ...], file_hash: int = 0) -> ByteArray:
        limit = self._max_image_pixels
        try:
            # Twice what the largest image takes uncompressed, of 16 bits a channel.
            content = read_file_inside(self._root, file, 16 * limit + 2**20)
            if file_hash:
                digest = hashlib.sha256(content).digest()
                if int.from_bytes(digest[:8], "big") != file_hash:
                    raise ValueError(
                        "it is not the file that was listed (its SHA-256 differs): it was damaged "
                        "or replaced"
                    )
            is_png = content.startswith(SIGNATURE)
            # Before Pillow sees it, which warns of large images and decodes damaged ones.
            if is_png:
                _check_size(png_size_wh(content), limit)
            if is_png and not file_hash:
                check_png(content)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check_size(image.size, limit)
                if image.mode not in modes:
                    raise ValueError(f"the image must be {' or '.join(modes)}, it is {image.mode}")
                return np.asarray(image if modes == ("RGBA",) else image.convert(modes[0]))
        except UnidentifiedImageError:
            raise self._corrupt(row, file, f"it is none of {', '.join(_FORMATS)}") from None
        except _DECODING_ERRORS as error:
            raise self._corrupt(row, file, str(error)) from error

    def _corrupt(self, row: int, file: str, problem: str) -> CorruptInstanceError:
        instance_id = self._index.instance_ids[row]
        line = f"line {self._index.lines[row]} of " if self._index.lines[row] else ""
        return CorruptInstanceError(
            instance_id,
            f"instance {instance_id!r} ({line}{self._root / self._listed_in}) cannot be read from "
            f"{self._root / file}: {problem}",
        )


_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
# What Pillow's decoders raise when a file is damaged.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def _check_size(size_wh: tuple[int, int], max_image_pixels: int) -> None:
    if size_wh[0] * size_wh[1] > max_image_pixels:
        raise ValueError(
            f"{size_wh[0]} x {size_wh[1]} px is over the limit of {max_image_pixels} pixels "
            "(`max_image_pixels`)"
        )


class AnnotatedObjects:
    """Cut objects out of the photographs of an LVIS file when they are asked for.

    Args:
        entries: Image and annotation of each row of the index.
        index: Names the rows.
        image_root: Folder of the images.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
        index: PoolIndex,
        image_root: Path,
    ) -> None:
        self._entries = entries
        self._index = index
        self._image_root = image_root

    @property
    def location(self) -> str | None:
        """Give the folder of the images."""
        return str(self._image_root)

    def file(self, row: int) -> None:
        """Give None: an object has no file of its own."""

    def read(self, row: int) -> ByteArray:
        """Read a photograph and cut one object out of it, with a hard mask.

        Raises:
            CorruptInstanceError: The photograph is missing or damaged, or the mask is.
        """
        image, annotation = self._entries[row]
        try:
            target, used = read_annotated_image(image, [annotation], self._image_root)
            if not used:
                raise AnnotationError(f"annotation {annotation['id']}: the mask has no pixel")
        except (AnnotationError, FileNotFoundError) as error:
            raise CorruptInstanceError(self._index.instance_ids[row], str(error)) from error
        region = target.regions[0]
        alpha = region.mask.view(np.uint8) * np.uint8(255)
        return np.dstack([target.image[region.window], alpha])

    def weighted(self, row: int) -> ByteArray:
        """Cut one object out with its colours multiplied by its alpha.

        Raises:
            CorruptInstanceError: As `read`.
        """
        return weighted_by_alpha(self.read(row))


def cut_out(rgb: ByteArray, mask: ByteArray) -> ByteArray:
    """Cut the largest part of a mask out of an image, cropped tightly.

    Args:
        rgb: uint8 `(h, w, 3)`.
        mask: uint8 `(h, w)`; the part of it that counts is above 128, and becomes the alpha.

    Returns:
        uint8 `(h', w', 4)`.

    Raises:
        ValueError: The sizes differ, or no pixel is above 128.
    """
    if rgb.shape[:2] != mask.shape:
        raise ValueError(
            f"the mask has {mask.shape[1]} x {mask.shape[0]} px, the image "
            f"{rgb.shape[1]} x {rgb.shape[0]}"
        )
    n, labels, boxes, _ = cv2.connectedComponentsWithStats((mask > 128).view(np.uint8))
    if n < 2:
        raise ValueError("the mask has no pixel above 128")
    part = 1 + int(np.argmax(boxes[1:, cv2.CC_STAT_AREA]))
    left, top, width, height = (int(side) for side in boxes[part, :4])
    window = slice(top, top + height), slice(left, left + width)
    alpha = np.where(labels[window] == part, mask[window], 0).astype(np.uint8)
    return np.dstack([rgb[window], alpha])


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
        self._weighted: dict[int, ByteArray] = {}

    @property
    def location(self) -> str | None:
        """Give None: there is no folder."""
        return None

    def file(self, row: int) -> None:
        """Give None: there is no file."""

    def read(self, row: int) -> ByteArray:
        """Give one image, not copied."""
        return self._rgba_images[row]

    def weighted(self, row: int) -> ByteArray:
        """Give one image with its colours multiplied by its alpha; kept for the next time."""
        if row not in self._weighted:
            self._weighted[row] = weighted_by_alpha(self._rgba_images[row])
        return self._weighted[row]
