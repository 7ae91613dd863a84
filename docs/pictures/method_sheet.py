"""Show what each method makes of a few images: the image, its soft masks and its cut-out.

Usage: python docs/pictures/method_sheet.py IMAGE_SET SHEET.png [SAMPLE_ID ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bsgal_mask import BorderSegmenter, CleanUp, Edges, ImageSet, U2NetSegmenter

SIDE_PX, GAP_PX = 96, 4


def main() -> None:
    """Write the sheet: one column per image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image_set", type=Path, help="folder that bsgal-generate wrote")
    parser.add_argument("sheet", type=Path, help="PNG to write")
    parser.add_argument("sample_ids", nargs="*", help="images to show (default: all)")
    options = parser.parse_args()
    image_set = ImageSet.open(options.image_set)
    methods = [BorderSegmenter(), U2NetSegmenter()]
    columns = []
    for row in image_set.rows:
        if options.sample_ids and row.sample_id not in options.sample_ids:
            continue
        image = image_set.read(row, max_image_px=4_000_000)
        tiles = [image]
        for method in methods:
            (mask,) = method.segment([image], [row.category_name])
            tiles.append(np.repeat(np.rint(mask[..., None] * 255).astype(np.uint8), 3, axis=2))
        tiles.append(cut_out(image, methods[0].segment([image], [row.category_name])[0]))
        columns.append(np.concatenate([framed(tile) for tile in tiles], axis=0))
    Image.fromarray(np.concatenate(columns, axis=1)).save(options.sheet, optimize=True)


def cut_out(image: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the object, without the background's colour on its edge, on a green-blue check."""
    edges = Edges(object_colours=True)
    alpha = CleanUp().apply(np.rint(edges.refined(image, mask) * 255).astype(np.uint8), 128)
    rows, columns = np.indices(alpha.shape) * 8 // max(alpha.shape)
    check = np.where(((rows + columns) % 2)[..., None], (60, 140, 120), (90, 175, 150))
    share = alpha[..., None] / 255
    mixed = share * edges.recoloured(image, alpha) + (1 - share) * check
    return np.asarray(np.rint(mixed).astype(np.uint8))


def framed(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a tile of the sheet: scaled to fit a square, with a white gap around."""
    picture = Image.fromarray(tile)
    picture.thumbnail((SIDE_PX, SIDE_PX))
    square = Image.new("RGB", (SIDE_PX + GAP_PX, SIDE_PX + GAP_PX), "white")
    square.paste(picture, (GAP_PX // 2, GAP_PX // 2))
    return np.asarray(square)


if __name__ == "__main__":
    main()
