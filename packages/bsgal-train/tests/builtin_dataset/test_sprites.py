from __future__ import annotations

import numpy as np
import pytest

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.sprites import CREDIT, load_sprites


def test_every_category_has_its_drawings() -> None:
    sprites = load_sprites(size_px=64)
    assert list(sprites) == [category.category_id for category in BUILTIN_CATEGORIES]
    for category in BUILTIN_CATEGORIES:
        assert len(sprites[category.category_id]) == len(category.codepoints) >= 1


def test_sprites_are_tight_rgba_crops_of_about_the_size_asked_for() -> None:
    for drawings in load_sprites(size_px=64).values():
        for rgba in drawings:
            assert rgba.dtype == np.uint8
            assert rgba.shape[2] == 4
            assert 32 <= max(rgba.shape[:2]) <= 77
            alpha = rgba[..., 3]
            for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
                assert edge.any()
            assert alpha.max() == 255


def test_sprites_are_deterministic_and_owned_by_the_caller() -> None:
    first, second = load_sprites(size_px=48), load_sprites(size_px=48)
    for category_id, drawings in first.items():
        for one, other in zip(drawings, second[category_id], strict=True):
            np.testing.assert_array_equal(one, other)
    first[3][0][:] = 0
    assert load_sprites(size_px=48)[3][0].any()


def test_no_two_categories_share_a_drawing() -> None:
    codepoints = [name for category in BUILTIN_CATEGORIES for name in category.codepoints]
    assert len(set(codepoints)) == len(codepoints)


def test_too_small_size_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8, got 4"):
        load_sprites(size_px=4)


def test_credit_names_the_source_and_the_licence() -> None:
    assert "OpenMoji" in CREDIT
    assert "CC BY-SA 4.0" in CREDIT
