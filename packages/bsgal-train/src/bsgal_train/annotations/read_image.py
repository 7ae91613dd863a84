"""Read one image from disk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from bsgal_train.annotations.lvis import ImageRecord
from bsgal_train.errors import CorruptImageError

__all__ = ["read_image"]


def read_image(record: ImageRecord) -> npt.NDArray[np.uint8]:
    """Read the image of a record, turned upright as its EXIF tag says.

    Returns:
        uint8 RGB `(H, W, 3)`; may be read-only.

    Raises:
        CorruptImageError: The file is missing, truncated or no image, or it has another size than
            the annotations say.
    """
    try:
        with Image.open(record.path) as file:
            ImageOps.exif_transpose(file, in_place=True)
            image = np.asarray(file if file.mode == "RGB" else file.convert("RGB"))
    # Pillow reports a broken file by any of these, depending on its format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImageError(f"{record.path} cannot be read: {error}") from error
    if image.shape[:2] != (record.height, record.width):
        raise CorruptImageError(
            f"{record.path} has {image.shape[1]} x {image.shape[0]} px, but was annotated at "
            f"{record.width} x {record.height} px"
        )
    return image
