"""How each kind of defect changes an instance's pixels; `kinds.py` says which there are and why.

Each function takes an instance and what it may be mixed with, and returns a new one, RGBA with
straight alpha. Sizes are relative to the instance, so that a kind is as severe at any resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Ingredients", "Rgba"]

Rgba = NDArray[np.uint8]

OPAQUE = 128
"""Alpha from which a pixel belongs to the object."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a spoilt instance may be mixed with.

    Attributes:
        rng: of this instance alone.
        stranger: a good instance of another category, RGBA.
        photograph: cuts a square of the given side out of a photograph, uint8 RGB.
    """

    rng: np.random.Generator
    stranger: Rgba
    photograph: Callable[[int], NDArray[np.uint8]]


def broken_mask(rgba: Rgba, given: Ingredients) -> Rgba:
    """Lose one half of the object, and take a block of plain background in on the other side."""
    height, width = rgba.shape[:2]
    broken = np.zeros((height, width + width // 2, 4), dtype=np.uint8)
    broken[:, :width] = rgba
    broken[:, : width // 2, 3] = 0
    plain = given.rng.integers(60, 200, 3).tolist()
    broken[height // 4 : 3 * height // 4, width:] = (*plain, 255)
    return cropped(broken[:, ::-1] if given.rng.random() < 0.5 else broken)


def noise(rgba: Rgba, given: Ingredients) -> Rgba:
    """Put noise in the place of the object."""
    noisy = rgba.copy()
    noisy[..., :3] = given.rng.integers(0, 256, (*rgba.shape[:2], 3), dtype=np.uint8)
    return noisy


def shifted_mask(rgba: Rgba, given: Ingredients) -> Rgba:
    """Move the mask until it overlaps the object by 0.65: one edge is lost, one is background."""
    scene = in_scene(rgba, given)
    own = scene[..., 3] >= OPAQUE
    moved, angle = own, given.rng.uniform(0, 2 * np.pi)
    for distance in range(max(rgba.shape[:2])):
        down, right = (round(distance * float(turn)) for turn in (np.sin(angle), np.cos(angle)))
        moved = np.roll(own, (down, right), axis=(0, 1))
        if (own & moved).sum() <= 0.65 * (own | moved).sum():
            break
    scene[..., 3] = 255 * moved
    return cropped(scene)


def holes(rgba: Rgba, given: Ingredients) -> Rgba:
    """Lose a quarter of the mask to round holes."""
    torn = rgba.copy()
    area = int((rgba[..., 3] >= OPAQUE).sum())
    rows, columns = np.indices(rgba.shape[:2])
    while (left := np.argwhere(torn[..., 3] >= OPAQUE)).size and len(left) > 0.75 * area:
        row, column = left[given.rng.integers(len(left))]
        radius = given.rng.uniform(0.1, 0.18) * area**0.5
        torn[(rows - row) ** 2 + (columns - column) ** 2 < radius**2, 3] = 0
    return cropped(torn)


def heavy_blur(rgba: Rgba, given: Ingredients) -> Rgba:
    """Blur the object inside its mask by a twelfth of its longest side."""
    sigma = max(rgba.shape[:2]) / 12
    weight = rgba[..., 3:].astype(np.float32) / 255
    colour, share = (
        cv2.GaussianBlur(one, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        for one in (rgba[..., :3] * weight, weight[..., 0])
    )
    blurred = np.clip(colour / np.maximum(share[..., None], 1e-3), 0, 255)
    return np.dstack([np.rint(blurred).astype(np.uint8), rgba[..., 3]])


def background_slab(rgba: Rgba, given: Ingredients) -> Rgba:
    """Take the object with the background around it: its box, wider by a sixth on each side."""
    scene = in_scene(rgba, given)
    rows, columns = (np.flatnonzero((scene[..., 3] >= OPAQUE).any(axis=i)) for i in (1, 0))
    (top, bottom), (left, right) = ((one[0], one[-1] + 1) for one in (rows, columns))
    down, across = (bottom - top) // 6, (right - left) // 6
    scene[..., 3] = 0
    scene[max(0, top - down) : bottom + down, max(0, left - across) : right + across, 3] = 255
    return cropped(scene)


def foreign_content(rgba: Rgba, given: Ingredients) -> Rgba:
    """Show an object of another category inside this one's outline, nothing of its own."""
    height, width = rgba.shape[:2]
    stranger = cv2.resize(given.stranger, (width, height), interpolation=cv2.INTER_AREA)
    weight = stranger[..., 3:].astype(np.float32) / 255
    mean = (stranger[..., :3] * weight).sum(axis=(0, 1)) / max(float(weight.sum()), 1e-3)
    colour = np.rint(stranger[..., :3] * weight + mean * (1 - weight))
    return np.dstack([colour.astype(np.uint8), rgba[..., 3]])


def two_in_one(rgba: Rgba, given: Ingredients) -> Rgba:
    """Take an object of another category, as large as this one, into the same mask beside it."""
    side = max(rgba.shape[:2])
    stranger = scaled(given.stranger, side)
    height = max(len(rgba), len(stranger))
    # They touch: a segmenter takes two for one where nothing is between them.
    step = round(0.85 * rgba.shape[1])
    both = np.zeros((height, step + stranger.shape[1] + rgba.shape[1], 4), dtype=np.uint8)
    lay(both, stranger, (height - len(stranger)) // 2, step)
    lay(both, rgba, (height - len(rgba)) // 2, 0)
    return cropped(both[:, ::-1] if given.rng.random() < 0.5 else both)


def lost_end(rgba: Rgba, given: Ingredients) -> Rgba:
    """Cut one end off: three tenths of the object's area, from a random direction."""
    rows, columns = np.indices(rgba.shape[:2])
    angle = given.rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    own = rgba[..., 3] >= OPAQUE
    cut = rgba.copy()
    if own.any():
        cut[along > np.quantile(along[own], 0.7), 3] = 0
    return cropped(cut)


def occluded(rgba: Rgba, given: Ingredients) -> Rgba:
    """Cover two fifths of the object with one of another category, as if it were its surface."""
    side = max(rgba.shape[:2])
    stranger = scaled(given.stranger, side)
    own = rgba[..., 3] >= OPAQUE
    centre = np.argwhere(own).mean(axis=0) if own.any() else np.array(own.shape) / 2
    angle = given.rng.uniform(0, 2 * np.pi)
    for distance in range(2 * side):
        middle = centre + distance * np.array([np.sin(angle), np.cos(angle)])
        top, left = (round(float(value)) for value in middle - np.array(stranger.shape[:2]) / 2)
        cover = np.zeros_like(rgba)
        lay(cover, stranger, top, left)
        if ((cover[..., 3] >= OPAQUE) & own).sum() <= 0.4 * own.sum():
            break
    weight = cover[..., 3:].astype(np.float32) / 255
    colour = np.rint(cover[..., :3] * weight + rgba[..., :3] * (1 - weight))
    return np.dstack([colour.astype(np.uint8), rgba[..., 3]])


def in_scene(rgba: Rgba, given: Ingredients) -> Rgba:
    """Return the object on a photograph, with a margin, and its mask as alpha of 0 and 255."""
    margin = max(rgba.shape[:2]) // 3 + 1
    padded = np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))
    height, width = padded.shape[:2]
    behind = given.photograph(max(height, width))[:height, :width]
    weight = padded[..., 3:].astype(np.float32) / 255
    colour = np.rint(padded[..., :3] * weight + behind * (1 - weight)).astype(np.uint8)
    return np.dstack([colour, np.where(padded[..., 3] >= OPAQUE, 255, 0).astype(np.uint8)])


def scaled(rgba: Rgba, longest_side: int) -> Rgba:
    """Return an instance at another size, its colours not mixed with what is transparent."""
    factor = longest_side / max(rgba.shape[:2])
    size_wh = (max(1, round(rgba.shape[1] * factor)), max(1, round(len(rgba) * factor)))
    weight = rgba[..., 3:].astype(np.float32) / 255
    colour, share = (
        cv2.resize(one, size_wh, interpolation=cv2.INTER_AREA)
        for one in (rgba[..., :3] * weight, weight[..., 0])
    )
    plain = np.clip(colour / np.maximum(share[..., None], 1e-3), 0, 255)
    return np.rint(np.dstack([plain, 255 * share])).astype(np.uint8)


def lay(canvas: Rgba, rgba: Rgba, top: int, left: int) -> None:
    """Lay an instance over a canvas, in place; what hangs over its edge is cut off."""
    first_row, first_column = max(0, -top), max(0, -left)
    part = rgba[first_row : len(canvas) - top, first_column : canvas.shape[1] - left]
    if not part.size:
        return
    top, left = max(0, top), max(0, left)
    under = canvas[top : top + len(part), left : left + part.shape[1]]
    weight = part[..., 3:].astype(np.float32) / 255
    under[..., :3] = np.rint(part[..., :3] * weight + under[..., :3] * (1 - weight))
    under[..., 3] = np.maximum(under[..., 3], part[..., 3])


def cropped(rgba: Rgba) -> Rgba:
    """Cut away rows and columns that are wholly transparent; keep what has nothing else."""
    rows, columns = (np.flatnonzero(rgba[..., 3].any(axis=i)) for i in (1, 0))
    if not len(rows):
        return np.ascontiguousarray(rgba)
    part = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(part)
