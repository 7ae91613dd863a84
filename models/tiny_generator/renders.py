"""Render training images: one drawing on a light plain background, varied in pose and colour."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.sprites import load_sprites

IMAGE_PX = 128
_SUPERSAMPLED_PX = 2 * IMAGE_PX


@dataclass(frozen=True, slots=True, kw_only=True)
class Appearance:
    """Hold the sampled parameters of one render."""

    longer_side_frac: float
    aspect: float
    rotation_deg: float
    shift_frac_xy: tuple[float, float]
    hue_shift: float
    saturation_gain: float
    value_gain: float
    light_direction_rad: float
    light_strength: float
    background_rgb: tuple[float, float, float]
    background_slope: float


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Draw the parameters of one render."""
    brightness = rng.uniform(0.78, 0.96)
    tint = rng.uniform(-0.035, 0.035, size=3)
    red, green, blue = np.clip(brightness + tint, 0.0, 1.0)
    return Appearance(
        longer_side_frac=rng.uniform(0.70, 0.88),
        aspect=rng.uniform(0.94, 1.06),
        rotation_deg=rng.uniform(-12.0, 12.0),
        shift_frac_xy=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)),
        hue_shift=rng.uniform(-0.025, 0.025),
        saturation_gain=rng.uniform(0.75, 1.15),
        value_gain=rng.uniform(0.85, 1.06),
        light_direction_rad=rng.uniform(0.0, 2.0 * np.pi),
        light_strength=rng.uniform(0.0, 0.22),
        background_rgb=(float(red), float(green), float(blue)),
        background_slope=rng.uniform(-0.04, 0.04),
    )


def render(sprite: npt.NDArray[np.uint8], look: Appearance) -> npt.NDArray[np.uint8]:
    """Draw one sprite with one appearance.

    Args:
        sprite: uint8 RGBA `(H, W, 4)` with straight alpha.
        look: The parameters of the render.

    Returns:
        uint8 RGB `(IMAGE_PX, IMAGE_PX, 3)`.
    """
    rgba = _recoloured(sprite, look)
    canvas = cv2.warpAffine(
        rgba,
        _placement(sprite.shape[:2], look),
        (_SUPERSAMPLED_PX, _SUPERSAMPLED_PX),
        flags=cv2.INTER_AREA if max(sprite.shape[:2]) > _SUPERSAMPLED_PX else cv2.INTER_LINEAR,
    )
    ramp = _ramp(look.light_direction_rad)
    canvas[..., :3] *= 1.0 + look.light_strength * ramp[..., None]
    background = np.asarray(look.background_rgb, dtype=np.float32)
    background = background + look.background_slope * ramp[..., None]
    image = canvas[..., :3] + (1.0 - canvas[..., 3:]) * background
    image = cv2.resize(image, (IMAGE_PX, IMAGE_PX), interpolation=cv2.INTER_AREA)
    return np.clip(image * 255.0 + 0.5, 0, 255).astype(np.uint8)


def _recoloured(sprite: npt.NDArray[np.uint8], look: Appearance) -> npt.NDArray[np.float32]:
    """Return the sprite as float32 RGBA with premultiplied alpha and shifted colours."""
    hsv = cv2.cvtColor(sprite[..., :3].astype(np.float32) / 255.0, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360.0 * look.hue_shift) % 360.0
    hsv[..., 1] = np.clip(hsv[..., 1] * look.saturation_gain, 0.0, 1.0)
    hsv[..., 2] = np.clip(hsv[..., 2] * look.value_gain, 0.0, 1.0)
    alpha = sprite[..., 3:].astype(np.float32) / 255.0
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return np.concatenate([rgb * alpha, alpha], axis=2)


def _placement(sprite_hw: tuple[int, int], look: Appearance) -> npt.NDArray[np.float64]:
    """Return the affine map from sprite pixels to pixels of the supersampled canvas."""
    height, width = sprite_hw
    scale = look.longer_side_frac * _SUPERSAMPLED_PX / max(height, width)
    cos, sin = np.cos(np.deg2rad(look.rotation_deg)), np.sin(np.deg2rad(look.rotation_deg))
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([look.aspect, 1 / look.aspect])
    centre = _SUPERSAMPLED_PX * (0.5 + np.asarray(look.shift_frac_xy))
    offset = centre - linear @ (0.5 * np.array([width, height]))
    return np.hstack([linear, offset[:, None]])


def _ramp(direction_rad: float) -> npt.NDArray[np.float32]:
    axis = np.linspace(-1.0, 1.0, _SUPERSAMPLED_PX, dtype=np.float32)
    return np.cos(direction_rad) * axis[None, :] + np.sin(direction_rad) * axis[:, None]


def render_data_set(path: Path, n_per_category: int, seed: int) -> npt.NDArray[np.uint8]:
    """Render the whole training set once and keep it in a file.

    Args:
        path: A `.npy` file, reused if it is there.
        n_per_category: Renders of each category.
        seed: Seed of all appearances.

    Returns:
        A read-only memory map, uint8 `(n_categories, n_per_category, IMAGE_PX, IMAGE_PX, 3)`.

    Raises:
        ValueError: If the file holds another number of renders.
    """
    if not path.exists():
        temporary = path.with_suffix(".partial.npy")
        images = np.lib.format.open_memmap(
            temporary,
            mode="w+",
            dtype=np.uint8,
            shape=(len(BUILTIN_CATEGORIES), n_per_category, IMAGE_PX, IMAGE_PX, 3),
        )
        with ProcessPoolExecutor(max_workers=2) as pool:
            tasks = [(index, n_per_category, seed) for index in range(len(BUILTIN_CATEGORIES))]
            for index, block in enumerate(pool.map(_render_category, tasks)):
                images[index] = block
        images.flush()
        temporary.replace(path)
    images = np.load(path, mmap_mode="r")
    if images.shape[:2] != (len(BUILTIN_CATEGORIES), n_per_category):
        raise ValueError(
            f"{path} holds {images.shape[0]} x {images.shape[1]} renders, not "
            f"{len(BUILTIN_CATEGORIES)} x {n_per_category}; choose another --work folder"
        )
    return images


def _render_category(task: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    class_index, n_renders, seed = task
    return np.stack(list(render_category(class_index, n_renders, seed)))


def render_category(class_index: int, n_renders: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield renders of one category, cycling through its drawings."""
    cv2.setNumThreads(1)
    drawings = load_sprites()[BUILTIN_CATEGORIES[class_index].category_id]
    for number in range(n_renders):
        rng = np.random.default_rng([seed, class_index, number])
        yield render(drawings[number % len(drawings)], sample_appearance(rng))
