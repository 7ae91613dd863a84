"""Decoding single images safely and writing cut-outs."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as PillowImage

from bsgal_mask._segmenter import Image
from bsgal_mask.errors import ImageError

_FORMATS = ("PNG", "JPEG", "WEBP")
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
# What Pillow's decoders raise on damaged files of these formats, found by damaging files.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, IndexError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip
# What makes a picture upright, by its EXIF orientation; 1 is upright, others are undefined.
_UPRIGHT = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}


def decode_image(content: bytes, *, max_image_px: int, keep_alpha: bool = False) -> Image:
    """Decode an image file as RGB or RGBA, turned upright as its EXIF orientation says.

    Args:
        content: A PNG, JPEG or WebP file. Of PNG files with colour and 16 bits
            per channel the upper 8 bits are taken; other modes with more than 8 bits are refused.
        max_image_px: Refuse larger images, in pixels (width times height), before decoding.
        keep_alpha: Return the alpha of an image that has it; else it is ignored.

    Returns:
        uint8 RGB array (H, W, 3), or RGBA (H, W, 4).

    Raises:
        ImageError: The file is damaged, too large, or of another kind.
    """
    try:
        with warnings.catch_warnings():
            # Of damage to pixels Pillow raises. It warns of damage beside them, and of pixel counts
            # beyond a limit of its own, for which ours, checked next, stands in.
            warnings.simplefilter("ignore")
            picture = PillowImage.open(io.BytesIO(content), formats=_FORMATS)
            width, height = picture.size
            if width * height > max_image_px:
                raise ImageError(f"{width} x {height} pixels, the limit is {max_image_px} pixels")
            if picture.mode not in _EIGHT_BIT_MODES:
                raise ImageError(f"colour mode {picture.mode}, 8 bits per channel are required")
            turn = _UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
            upright = picture if turn is None else picture.transpose(turn)
            has_alpha = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
            return np.array(upright.convert("RGBA" if has_alpha and keep_alpha else "RGB"))
    except PillowImage.DecompressionBombError as error:
        raise ImageError(str(error)) from None
    except ImageError:
        raise
    except UnidentifiedImageError:
        # Its own message holds a memory address, which would differ from run to run.
        raise ImageError("damaged or not a PNG, JPEG or WebP image") from None
    except _DECODING_ERRORS as error:
        raise ImageError(f"damaged ({error})") from None


def encode_rgba(image: Image, alpha: Image) -> bytes:
    """Return a PNG of an RGB image (H, W, 3) with straight alpha (H, W), all uint8.

    Pixels with any alpha keep their colour; those without any become black, which saves a quarter
    of the bytes.
    """
    visible = np.where(alpha[..., None] > 0, image, np.uint8(0))
    stream = io.BytesIO()
    PillowImage.fromarray(np.dstack([visible, alpha])).save(stream, "PNG")
    return stream.getvalue()
