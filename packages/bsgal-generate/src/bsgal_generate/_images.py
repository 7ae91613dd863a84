"""Images as the bytes of PNG files, and back."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import ImageSetError

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})
# What Pillow's decoder raises on damaged files, found by damaging files.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 RGB (H, W, 3) or RGBA (H, W, 4), as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def read_png(content: bytes, where: str, max_image_px: int) -> npt.NDArray[np.uint8]:
    """Return the image in a PNG file's bytes, uint8 RGB (H, W, 3), or RGBA (H, W, 4) with alpha.

    Args:
        content: The file.
        where: What it is, for messages.
        max_image_px: Most pixels the image may have; a larger one is not decoded.

    Raises:
        ImageSetError: It is no PNG of 8 bits per channel, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit, checked next, stands in for Pillow's warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=["PNG"])
        # Only the header has been read so far.
        if image.width * image.height > max_image_px:
            raise ImageSetError(
                f"{where} has {image.width} x {image.height} pixels, more than the limit of "
                f"{max_image_px}; raise `max_image_px` if that is right"
            )
        if image.mode not in _EIGHT_BIT_MODES:
            raise ImageSetError(f"{where} has colour mode {image.mode}, not 8 bits per channel")
        has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        return np.array(image.convert("RGBA" if has_alpha else "RGB"))
    except ImageSetError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageSetError(f"{where} is too large: {error}") from error
    except _DECODING_ERRORS as error:
        raise ImageSetError(f"{where} is no PNG: {error}") from error
