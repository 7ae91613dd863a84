from __future__ import annotations

import numpy as np
import pytest

from bsgal_train.builtin_dataset.backgrounds import (
    PHOTOGRAPHS,
    Background,
    Photograph,
    load_photographs,
    sample_background,
)

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def left_and_right() -> Background:
    """A photograph whose columns tell where they are: red grows from 0 to 250 to the right."""
    image = np.zeros((200, 251, 3), dtype=np.uint8)
    image[..., 0] = np.arange(251)
    return Background(PHOTOGRAPHS[0], image, "")


def test_every_photograph_is_installed_and_rgb() -> None:
    backgrounds = load_photographs()
    assert len(backgrounds) == len(PHOTOGRAPHS) >= 10
    for background in backgrounds:
        assert background.image.dtype == np.uint8
        assert background.image.shape[2] == 3
        assert min(background.image.shape[:2]) >= 300


def test_channels_are_in_rgb_order() -> None:
    flower = next(item for item in load_photographs() if "flower" in item.photograph.file)
    red, _, blue = flower.image[150:250, 300:360].reshape(-1, 3).mean(axis=0)
    assert red > blue + 50


def test_crop_has_the_side_asked_for() -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        crop = sample_background(rng, load_photographs(), split, 96)
        assert crop.shape == (96, 96, 3)
        assert crop.dtype == np.uint8


def test_train_and_val_crops_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bsgal_train.builtin_dataset.backgrounds._vary_colours", lambda rng, image, tint: image
    )
    rng = np.random.default_rng(0)
    background = (left_and_right(),)
    train = max(sample_background(rng, background, "train", 80)[..., 0].max() for _ in range(40))
    val = min(sample_background(rng, background, "val", 80)[..., 0].min() for _ in range(40))
    # Interpolation may overshoot a ramp's end by a step.
    assert train <= val + 2


def test_same_seed_gives_the_same_crop() -> None:
    backgrounds = load_photographs()
    first, second = (
        sample_background(np.random.default_rng(5), backgrounds, "train", 64) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_missing_photograph_says_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match="pip install scikit-image"):
        _ = Photograph(package="skimage", file="data/no_such.png").path


def test_missing_package_says_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match="no_such_package is missing"):
        _ = Photograph(package="no_such_package", file="a.png").path
