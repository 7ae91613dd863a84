"""Make `blend_modes.jpg`; needs scikit-image, whose photographs it is made of.

The cat (by Stefan van der Walt) and the cup (by Rachel Michetti) are in the public domain (CC0).
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import skimage.data
from PIL import Image

from bsgal_paste import (
    AnnotatedImage,
    BlendMode,
    CopyPaste,
    FixedSampler,
    InstancePool,
    UniformScale,
)

HERE = Path(__file__).resolve().parent
TILE_HW = 220, 330


def cut_out_cup() -> np.ndarray:
    """Cut cup and saucer out with GrabCut, started from an ellipse."""
    photo = skimage.data.coffee()
    guess = np.full(photo.shape[:2], cv2.GC_BGD, dtype=np.uint8)
    cv2.ellipse(guess, (310, 205), (225, 190), 0, 0, 360, cv2.GC_PR_BGD, -1)
    cv2.ellipse(guess, (310, 205), (195, 150), 0, 0, 360, cv2.GC_PR_FGD, -1)
    cv2.ellipse(guess, (310, 200), (150, 110), 0, 0, 360, cv2.GC_FGD, -1)
    cv2.setRNGSeed(0)
    cv2.grabCut(photo, guess, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    mask = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, labels, areas, _ = cv2.connectedComponentsWithStats(mask)
    mask = (labels == 1 + np.argmax(areas[1:, cv2.CC_STAT_AREA])).astype(np.uint8)
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(mask, outline, -1, 1, -1)
    alpha = cv2.GaussianBlur(mask * np.float32(255), (7, 7), 0).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(alpha)
    return np.dstack([photo, alpha])[y : y + height, x : x + width]


def main() -> None:
    """Paste the cup beside the cat in each blend mode and write `blend_modes.jpg`."""
    cat = cv2.resize(skimage.data.chelsea(), TILE_HW[::-1], interpolation=cv2.INTER_AREA)
    target = AnnotatedImage(cat, np.zeros((0, *TILE_HW), dtype=bool), [])
    pool = InstancePool.from_arrays([cut_out_cup()], [1], category_names={1: "cup"})
    tiles = []
    for mode in get_args(BlendMode):
        paste = CopyPaste(
            pool, FixedSampler(pool, ["memory-0"]), UniformScale(scale_range=(0.45, 0.45)),
            blend_mode=mode, aspect_range=(1, 1), flip_prob=0,
        )  # fmt: skip
        drawn = paste.sample_parameters(TILE_HW, target.category_ids, np.random.default_rng(0))
        drawn.centres_xy[:] = (0.3, 0.72)
        tile = paste.apply(target, drawn).image
        cv2.putText(tile, mode, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(tile, mode, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255,) * 3, 1, cv2.LINE_AA)
        tiles.append(tile)
    sheet = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    Image.fromarray(sheet).save(HERE / "blend_modes.jpg", quality=88)


if __name__ == "__main__":
    main()
