from __future__ import annotations

import numpy as np
import pytest

from bsgal_train.builtin_dataset.scenes import MIN_VISIBLE_PX, compose_scene


def plain_sprites(n_categories: int) -> dict[int, tuple[np.ndarray, ...]]:
    """Opaque squares, each of its own bright colour."""
    sprites = {}
    for category_id in range(1, n_categories + 1):
        sprite = np.full((100, 100, 4), 255, dtype=np.uint8)
        sprite[..., :3] = np.random.default_rng(category_id).integers(60, 255, 3)
        sprites[category_id] = (sprite,)
    return sprites


def black(side_px: int = 160) -> np.ndarray:
    return np.zeros((side_px, side_px, 3), dtype=np.uint8)


@pytest.mark.parametrize("n_categories", [1, 3, 8])
def test_scene_holds_exactly_the_categories_asked_for(n_categories: int) -> None:
    category_ids = list(range(1, n_categories + 1))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene = compose_scene(rng, black(), category_ids, plain_sprites(9))
        assert {item.category_id for item in scene.objects} == set(category_ids)


def test_masks_are_disjoint_and_large_enough() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = compose_scene(rng, black(), [1, 2, 3, 4, 5], plain_sprites(5))
        assert sum(item.mask.astype(int) for item in scene.objects).max() == 1
        assert all(item.mask.sum() >= MIN_VISIBLE_PX for item in scene.objects)


def test_every_drawn_pixel_is_in_a_mask_and_every_mask_is_drawn() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene = compose_scene(rng, black(), [1, 2, 3], plain_sprites(3))
        covered = np.logical_or.reduce([item.mask for item in scene.objects])
        brightness = scene.image.max(axis=2)
        # Noise on black stays below 25; a pixel of an edge has less than half of its object.
        assert brightness[covered].min() > 15
        assert np.median(brightness[~covered]) < 10
        assert (brightness[~covered] > 130).sum() == 0


def test_objects_are_occluded_now_and_then() -> None:
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = compose_scene(rng, black(), [1, 2, 3, 4], plain_sprites(4))
        for item in scene.objects:
            rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
            shares.append(item.mask.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1))
    assert min(shares) < 0.4
    assert max(shares) > 0.9


def test_background_is_left_alone() -> None:
    background = black()
    compose_scene(np.random.default_rng(0), background, [1], plain_sprites(1))
    assert not background.any()


def test_same_seed_gives_the_same_scene() -> None:
    first, second = (
        compose_scene(np.random.default_rng(7), black(), [1, 2], plain_sprites(2)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.image, second.image)


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"40 objects do not fit into an image of 40x40 px"):
        compose_scene(np.random.default_rng(0), black(40), list(range(1, 41)), plain_sprites(40))
