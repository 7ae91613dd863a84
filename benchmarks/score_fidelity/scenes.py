"""Scenes for the detector: handwritten digits pasted into photographs, with boxes and masks.

Digits are scikit-learn's 1797 scans, photographs those that scikit-image and scikit-learn ship.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIDE_PX = 128
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
KINDS = ("clean", "noisy", "mislabelled", "wrong_mask")


@dataclass(frozen=True)
class Scene:
    """One image with its objects."""

    image: Tensor
    """(3, 128, 128), float32 in [0, 1]."""
    boxes: Tensor
    """(n, 4), corners in pixels."""
    labels: Tensor
    """(n,), digit + 1: 0 is background."""
    masks: Tensor
    """(n, 128, 128), uint8."""

    def target(self) -> dict[str, Tensor]:
        """Return what torchvision's detectors take."""
        return {"boxes": self.boxes, "labels": self.labels, "masks": self.masks}


@cache
def photographs() -> tuple[np.ndarray[Any, Any], ...]:
    """Return the photographs, float32 RGB in [0, 1], made small."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    arrays = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    shrunk = []
    for array in (*arrays, *load_sample_images().images):
        # By whole factors, to 200 pixels or more on the shorter side.
        factor = min(array.shape[:2]) // 200
        height, width = (factor * (extent // factor) for extent in array.shape[:2])
        shape = (height // factor, factor, width // factor, factor, 3)
        blocks = array[:height, :width].reshape(shape)
        shrunk.append(blocks.mean((1, 3)).astype(np.float32) / 255)
    return tuple(shrunk)


@cache
def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the scans (1797, 8, 8) in [0, 1] and their digits (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32) / 16, data.target


def _background(rng: np.random.Generator) -> Tensor:
    photograph = photographs()[rng.integers(len(photographs()))]
    side = int(rng.integers(SIDE_PX, min(photograph.shape[:2]) + 1))
    top, left = (int(rng.integers(extent - side + 1)) for extent in photograph.shape[:2])
    crop = torch.from_numpy(photograph[top : top + side, left : left + side].copy())
    crop = crop.permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(crop, (SIDE_PX, SIDE_PX), mode="area")[0]


def draw_scene(
    rng: np.random.Generator, *, training: bool, n_objects: int = 2, kind: str | None = None
) -> Scene:
    """Draw a scene.

    Args:
        rng: Decides everything.
        training: Take digits from the first 1200 scans; else from the others.
        n_objects: Good objects.
        kind: One of `KINDS`: a further object of that kind is pasted last; None: none is.
    """
    scans, numbers = digits()
    image = _background(rng)
    boxes, labels, masks = [], [], []
    centres = rng.permutation(4)
    for i in range(n_objects + (kind is not None)):
        index = int(rng.integers(1200) if training else rng.integers(1200, len(scans)))
        side = int(rng.integers(32, 57))
        scan = torch.from_numpy(scans[index])[None, None]
        alpha = torch.nn.functional.interpolate(scan, (side, side), mode="bicubic")[0, 0]
        alpha = (1.6 * alpha).clamp(0, 1)
        # One object per quarter of the image, so that objects do not hide each other.
        row, column = divmod(int(centres[i]), 2)
        top, left = (int(64 * place + rng.integers(0, 65 - side)) for place in (row, column))
        colour = torch.from_numpy(rng.random((3, 1, 1)).astype(np.float32))
        special = kind if i == n_objects else "clean"
        if special == "noisy":
            paint = torch.from_numpy(rng.random((3, side, side)).astype(np.float32))
            alpha_seen = torch.ones_like(alpha)
        else:
            paint, alpha_seen = colour.expand(3, side, side), alpha
        region = image[:, top : top + side, left : left + side]
        region.copy_(alpha_seen * paint + (1 - alpha_seen) * region)
        mask = torch.zeros(SIDE_PX, SIDE_PX, dtype=torch.uint8)
        mask[top : top + side, left : left + side] = (alpha > 0.5).to(torch.uint8)
        rows, columns = mask.nonzero().unbind(1)
        box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        number = int(numbers[index])
        if special == "mislabelled":
            number = (number + int(rng.integers(1, 10))) % 10
        if special == "wrong_mask":
            inside = mask[box[1] : box[3], box[0] : box[2]]
            mask[box[1] : box[3], box[0] : box[2]] = 1 - inside
        boxes.append(box)
        labels.append(number + 1)
        masks.append(mask)
    return Scene(
        image=image,
        boxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.tensor(labels),
        masks=torch.stack(masks),
    )
