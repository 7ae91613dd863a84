"""Vary how a drawn object looks: rotation, flip, perspective, colour, shading, blur.

Parameters are sampled first (`sample_appearance`), then applied by a function in which nothing is
random (`render_object`), so that one appearance can be drawn again, or at another size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Appearance", "AppearanceRanges", "render_object", "sample_appearance"]

# Weights of red, green and blue in the brightness of a colour (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])
# The object is warped at this many times its final resolution and then averaged down.
_SUPERSAMPLING = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class AppearanceRanges:
    """Intervals from which an appearance is drawn uniformly."""

    rotation_deg_range: tuple[float, float] = (-25.0, 25.0)
    """Rotation, counter-clockwise."""
    flip_prob: float = 0.5
    """Probability of mirroring left and right."""
    stretch_range: tuple[float, float] = (0.85, 1.18)
    """Width is multiplied by this before scaling, which changes the aspect ratio."""
    perspective_range: tuple[float, float] = (0.0, 0.14)
    """Largest shift of each corner, as a share of the side."""
    hue_deg_range: tuple[float, float] = (-18.0, 18.0)
    """Turn of the hue."""
    saturation_range: tuple[float, float] = (0.65, 1.2)
    """Factor on the distance from grey."""
    value_range: tuple[float, float] = (0.7, 1.12)
    """Factor on the brightness."""
    shading_range: tuple[float, float] = (0.05, 0.4)
    """Strength of the linear light gradient: brightness falls by this share on the dark side and
    rises by half of it on the light side."""
    blur_sigma_px_range: tuple[float, float] = (0.0, 0.8)
    """Standard deviation of the Gaussian blur, in pixels of the rendered object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appearance:
    """One drawn appearance; the fields follow `AppearanceRanges`."""

    rotation_deg: float
    flip: bool
    stretch: float
    corner_shifts: tuple[tuple[float, float], ...]
    """Four (x, y) shifts as shares of the sides: top left, top right, bottom right, bottom left."""
    hue_deg: float
    saturation: float
    value: float
    shading: float
    shading_direction_deg: float
    """Where the light comes from; 0 is right, 90 is down."""
    blur_sigma_px: float


def sample_appearance(
    rng: np.random.Generator, ranges: AppearanceRanges | None = None
) -> Appearance:
    """Draw an appearance.

    Args:
        rng: Source of randomness; advanced by a fixed number of draws.
        ranges: Intervals to draw from; the defaults of `AppearanceRanges` if None.
    """
    ranges = ranges or AppearanceRanges()
    rotation_deg = rng.uniform(*ranges.rotation_deg_range)
    flip = bool(rng.random() < ranges.flip_prob)
    stretch = rng.uniform(*ranges.stretch_range)
    shift_limit = rng.uniform(*ranges.perspective_range)
    shifts = rng.uniform(-1.0, 1.0, size=(4, 2)) * shift_limit
    return Appearance(
        rotation_deg=rotation_deg,
        flip=flip,
        stretch=stretch,
        corner_shifts=tuple((float(x), float(y)) for x, y in shifts),
        hue_deg=rng.uniform(*ranges.hue_deg_range),
        saturation=rng.uniform(*ranges.saturation_range),
        value=rng.uniform(*ranges.value_range),
        shading=rng.uniform(*ranges.shading_range),
        shading_direction_deg=rng.uniform(0.0, 360.0),
        blur_sigma_px=rng.uniform(*ranges.blur_sigma_px_range),
    )


def render_object(
    sprite: NDArray[np.uint8], appearance: Appearance, longest_side_px: float
) -> NDArray[np.uint8]:
    """Draw an object as it appears.

    Args:
        sprite: RGBA uint8 of shape (H, W, 4), straight alpha, cropped tightly. Not changed.
        appearance: What to apply.
        longest_side_px: Longest side of the warped sprite's bounding box, at least 4.

    Returns:
        RGBA uint8 of shape (h, w, 4), straight alpha, cropped to the pixels whose alpha is not 0.

    Raises:
        ValueError: `sprite` has another shape or dtype or is empty, or the side is below 4 px.
    """
    if sprite.ndim != 3 or sprite.shape[2] != 4 or sprite.dtype != np.uint8 or sprite.size == 0:
        raise ValueError(
            f"`sprite` must be uint8 of shape (H, W, 4), got {sprite.dtype} {sprite.shape}"
        )
    if longest_side_px < 4:
        raise ValueError(f"`longest_side_px` must be at least 4, got {longest_side_px}")
    warped = _warp(_premultiplied(sprite), appearance, longest_side_px)
    if appearance.blur_sigma_px > 0:
        margin = int(np.ceil(3 * appearance.blur_sigma_px))
        warped = cv2.copyMakeBorder(warped, *(margin,) * 4, cv2.BORDER_CONSTANT, value=(0.0,) * 4)
        warped = cv2.GaussianBlur(warped, (0, 0), appearance.blur_sigma_px)
    alpha = np.clip(warped[..., 3:], 0.0, 1.0)
    colour = warped[..., :3] / np.maximum(alpha, 1e-6)
    colour = np.clip(colour @ _colour_matrix(appearance).T, 0.0, 1.0)
    colour = np.clip(colour * _shading(alpha.shape[:2], appearance)[..., None], 0.0, 1.0)
    rgba = np.rint(np.concatenate([colour, alpha], axis=2) * 255.0).astype(np.uint8)
    return _tight_crop(rgba)


def _premultiplied(sprite: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 RGBA in [0, 1] whose colour is multiplied by alpha, safe to interpolate."""
    rgba = sprite.astype(np.float32) / np.float32(255.0)
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def _warp(
    rgba: NDArray[np.float32], appearance: Appearance, longest_side_px: float
) -> NDArray[np.float32]:
    """Apply flip, stretch, perspective, rotation and scale in one resampling."""
    height, width = rgba.shape[:2]
    unit_corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)
    corners = unit_corners + np.array(appearance.corner_shifts)
    corners *= [width * appearance.stretch, height]
    if appearance.flip:
        corners[:, 0] *= -1
    angle = np.deg2rad(appearance.rotation_deg)
    # Image rows grow downwards, so a counter-clockwise turn has this sign pattern.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = corners @ turn
    corners -= corners.min(axis=0)
    fine_px = longest_side_px * _SUPERSAMPLING
    corners *= fine_px / corners.max()
    # Shrinking more than twofold inside one bilinear warp would alias, so most of it goes first.
    shrink = min(1.0, fine_px / max(height, width))
    if shrink < 1.0:
        small_wh = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        rgba = cv2.resize(rgba, small_wh, interpolation=cv2.INTER_AREA)
        height, width = rgba.shape[:2]
    # OpenCV counts from the centre of the first pixel, corners are counted from its edge.
    source = (unit_corners * [width, height] - 0.5).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(source, (corners - 0.5).astype(np.float32))
    # A quarter turn leaves a rounding error that must not cost a column of pixels.
    coarse_wh = np.ceil(corners.max(axis=0) / _SUPERSAMPLING - 1e-6).astype(int)
    fine_wh = tuple(int(side) * _SUPERSAMPLING for side in coarse_wh)
    warped = cv2.warpPerspective(rgba, matrix, fine_wh, flags=cv2.INTER_LINEAR)
    small: NDArray[np.float32] = cv2.resize(
        warped, tuple(int(side) for side in coarse_wh), interpolation=cv2.INTER_AREA
    )
    return small


def _colour_matrix(appearance: Appearance) -> NDArray[np.float64]:
    """Return the matrix (3, 3) that turns the hue, scales the distance from grey, and brightens."""
    angle = np.deg2rad(appearance.hue_deg)
    # Rodrigues' formula for a turn about the grey axis.
    axis = np.full(3, 1 / np.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross
    turn = turn + (1 - np.cos(angle)) * np.outer(axis, axis)
    grey = np.outer(np.ones(3), _LUMA)
    matrix: NDArray[np.float64] = grey + appearance.saturation * (turn - grey @ turn)
    return appearance.value * matrix


def _shading(image_hw: tuple[int, int], appearance: Appearance) -> NDArray[np.float64]:
    """Return the factor (H, W) of a linear light gradient across the object."""
    direction = np.deg2rad(appearance.shading_direction_deg)
    x = np.linspace(-1.0, 1.0, image_hw[1])[None, :] * np.cos(direction)
    y = np.linspace(-1.0, 1.0, image_hw[0])[:, None] * np.sin(direction)
    towards_light = (x + y) / (abs(np.cos(direction)) + abs(np.sin(direction)))
    strength = appearance.shading * np.where(towards_light > 0, 0.5, 1.0)
    factor: NDArray[np.float64] = 1 + strength * towards_light
    return factor


def _tight_crop(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut away rows and columns that are wholly transparent."""
    rows = np.flatnonzero(rgba[..., 3].any(axis=1))
    columns = np.flatnonzero(rgba[..., 3].any(axis=0))
    if not len(rows):
        return rgba[:0, :0]
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
