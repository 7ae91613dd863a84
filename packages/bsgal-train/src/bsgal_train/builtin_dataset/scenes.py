"""Compose scenes: several objects on a photograph, one in front of the other, with exact masks.

Objects are drawn back to front. An object is only placed where it and everything behind it stays
visible enough, so whatever is drawn is annotated and whatever is annotated can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsgal_train.builtin_dataset.appearance import render_object, sample_appearance

__all__ = ["MIN_VISIBLE_PX", "MIN_VISIBLE_SHARE", "Scene", "SceneObject", "compose_scene"]

MIN_VISIBLE_PX = 80
"""Every object of a scene shows at least this many pixels."""
MIN_VISIBLE_SHARE = 0.4
"""Every object of a scene shows at least this share of its full area."""

# The longest side of an object, as a share of the image's side, is drawn log-uniformly from here.
_SIZE_SHARE_RANGE = (0.18, 0.62)
_SHORTEST_LONGEST_SIDE_PX = 12
# A category that a scene must hold gets a second instance with this probability.
_SECOND_INSTANCE_PROB = 0.3
_PLACEMENT_TRIES = 12
_SCENE_TRIES = 20
# Alpha from which a pixel belongs to the object.
_LABEL_ALPHA = 128


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object as it can be seen in a scene."""

    category_id: int
    mask: NDArray[np.bool_]
    """Visible pixels, of the image's shape (H, W)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """An image and every object in it."""

    image: NDArray[np.uint8]
    """uint8 RGB of shape (H, W, 3)."""
    objects: tuple[SceneObject, ...]
    """From the back to the front; their masks are disjoint."""


@dataclass(slots=True)
class _Placed:
    category_id: int
    mask: NDArray[np.bool_]
    full_area_px: int

    def stays_visible_behind(self, cover: NDArray[np.bool_]) -> bool:
        return _is_visible(int((self.mask & ~cover).sum()), self.full_area_px)


def compose_scene(
    rng: np.random.Generator,
    background: NDArray[np.uint8],
    category_ids: Sequence[int],
    sprites: Mapping[int, Sequence[NDArray[np.uint8]]],
) -> Scene:
    """Draw at least one object of every given category on a background.

    Args:
        rng: Source of randomness.
        background: uint8 RGB of shape (H, W, 3). Not changed.
        category_ids: Categories the scene must hold; no other category occurs.
        sprites: For each category its drawings, RGBA uint8 with straight alpha.

    Raises:
        ValueError: So many categories were asked for that they do not fit next to each other.
    """
    for attempt in range(_SCENE_TRIES):
        scene = _try_scene(rng, background, category_ids, sprites, size_factor=0.93**attempt)
        if scene is not None:
            return scene
    raise ValueError(
        f"{len(category_ids)} objects do not fit into an image of "
        f"{background.shape[1]}x{background.shape[0]} px; ask for fewer categories per scene"
    )


def _try_scene(
    rng: np.random.Generator,
    background: NDArray[np.uint8],
    category_ids: Sequence[int],
    sprites: Mapping[int, Sequence[NDArray[np.uint8]]],
    size_factor: float,
) -> Scene | None:
    """Compose a scene, or return None when a category found no place."""
    is_second = [False] * len(category_ids)
    wanted = list(category_ids)
    for category_id in category_ids:
        if rng.random() < _SECOND_INSTANCE_PROB:
            wanted.append(category_id)
            is_second.append(True)
    canvas = background.astype(np.float32)
    placed: list[_Placed] = []
    for index in rng.permutation(len(wanted)):
        drawings = sprites[wanted[index]]
        sprite = drawings[int(rng.integers(len(drawings)))]
        if not _place(rng, canvas, placed, wanted[index], sprite, size_factor):
            if is_second[index]:
                continue
            return None
    canvas += rng.normal(0.0, rng.uniform(0.5, 4.0), size=canvas.shape)
    image = np.rint(np.clip(canvas, 0.0, 255.0)).astype(np.uint8)
    return Scene(image, tuple(SceneObject(item.category_id, item.mask) for item in placed))


def _place(
    rng: np.random.Generator,
    canvas: NDArray[np.float32],
    placed: list[_Placed],
    category_id: int,
    sprite: NDArray[np.uint8],
    size_factor: float,
) -> bool:
    """Draw one object in front of what is placed, if a fitting place is found in a few tries."""
    image_hw = canvas.shape[:2]
    size_share = np.exp(rng.uniform(*np.log(_SIZE_SHARE_RANGE))) * size_factor
    longest_side_px = max(size_share * max(image_hw), _SHORTEST_LONGEST_SIDE_PX)
    rendered = render_object(sprite, sample_appearance(rng), longest_side_px)
    full_area_px = int((rendered[..., 3] >= _LABEL_ALPHA).sum())
    for _ in range(_PLACEMENT_TRIES):
        centre_yx = rng.uniform(0.08, 0.92, size=2) * image_hw
        top, left = np.rint(centre_yx - np.array(rendered.shape[:2]) / 2).astype(int)
        alpha, target, source = _overlap(rendered, (int(top), int(left)), image_hw)
        mask = np.zeros(image_hw, dtype=bool)
        mask[target] = alpha >= _LABEL_ALPHA
        if not _is_visible(int(mask.sum()), full_area_px):
            continue
        if not all(item.stays_visible_behind(mask) for item in placed):
            continue
        for item in placed:
            item.mask &= ~mask
        placed.append(_Placed(category_id, mask, full_area_px))
        weight = alpha[..., None].astype(np.float32) / np.float32(255.0)
        colour = rendered[source][..., :3].astype(np.float32)
        canvas[target] = canvas[target] * (1 - weight) + colour * weight
        return True
    return False


def _overlap(
    rendered: NDArray[np.uint8], top_left: tuple[int, int], image_hw: tuple[int, ...]
) -> tuple[NDArray[np.uint8], tuple[slice, slice], tuple[slice, slice]]:
    """Return the object's alpha inside the image, and where that part lies in image and object."""
    target, source = [], []
    for start, length, limit in zip(top_left, rendered.shape[:2], image_hw, strict=True):
        first, last = max(start, 0), min(start + length, limit)
        target.append(slice(first, last))
        source.append(slice(first - start, last - start))
    inside = (source[0], source[1])
    return rendered[inside][..., 3], (target[0], target[1]), inside


def _is_visible(visible_px: int, full_area_px: int) -> bool:
    """Tell whether so many visible pixels are enough to annotate an object."""
    return visible_px >= MIN_VISIBLE_PX and visible_px >= MIN_VISIBLE_SHARE * full_area_px
