"""Make `docs/pictures/defects.jpg`: good instances, and every kind of defect of them.

    python benchmarks/defect_sheet.py

Kinds that change the label alone are left out: their pictures are good ones. The drawings are
OpenMoji's (CC BY-SA 4.0).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from train_study.kinds import KINDS
from train_study.plant import spoilt

from bsgal_train.builtin_dataset.appearance import render_object, sample_appearance
from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.sprites import load_sprites

SHEET = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "defects.jpg"
SHOWN = ("airplane", "banana", "car_(automobile)", "bear", "book", "carrot", "bell", "cake")
TILE_PX, GAP_PX, LABEL_PX = 96, 6, 150


def main() -> None:
    """Write the sheet, one kind a row, those that nothing is developed with last."""
    sprites = load_sprites()
    drawings = {one.name: sprites[one.category_id][0] for one in BUILTIN_CATEGORIES}
    good = [
        render_object(drawings[name], sample_appearance(np.random.default_rng(n)), TILE_PX)
        for n, name in enumerate(SHOWN)
    ]
    rows = [labelled("good", good)]
    for name, kind in KINDS.items():
        if kind.change is None:
            continue
        shown = [
            spoilt(rgba, name, np.random.default_rng(n), good[n - 1]) for n, rgba in enumerate(good)
        ]
        label = f"{name} (held back)" if kind.role == "held_back" else name
        rows.append(labelled(label, shown))
    sheet = np.concatenate(rows, axis=0)
    Image.fromarray(sheet).save(SHEET, quality=80, optimize=True)


def labelled(name: str, instances: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return a row of the sheet."""
    label = np.full((TILE_PX + GAP_PX, LABEL_PX, 3), 255, dtype=np.uint8)
    for n, line in enumerate(name.split(" ", 1)):
        where = (4, 50 + 18 * n)
        cv2.putText(label, line, where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([label, *(tile(rgba) for rgba in instances)], axis=1)


def tile(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an instance on a check, scaled to fit a square."""
    side = max(rgba.shape[:2])
    square = np.zeros((side, side, 4), dtype=np.uint8)
    top, left = (side - rgba.shape[0]) // 2, (side - rgba.shape[1]) // 2
    square[top : top + rgba.shape[0], left : left + rgba.shape[1]] = rgba
    rows, columns = np.indices((side, side)) * 8 // side
    check = np.where(((rows + columns) % 2)[..., None], (60, 140, 120), (90, 175, 150))
    alpha = square[..., 3:] / 255
    mixed = np.rint(square[..., :3] * alpha + check * (1 - alpha)).astype(np.uint8)
    small = cv2.resize(mixed, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
    pad = ((GAP_PX // 2, GAP_PX - GAP_PX // 2),) * 2
    return np.pad(small, (*pad, (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
