from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_paste import BLEND_MODES, Cutout
from bsgal_paste._blend import blend

GOLDEN = Path(__file__).with_name("golden_blends")


def cutout(rgb: np.ndarray, label_mask: np.ndarray, *, top: int = 4, left: int = 3) -> Cutout:
    height, width = label_mask.shape
    return Cutout(
        rgb=rgb,
        alpha=label_mask * np.uint8(255),
        label_mask=label_mask,
        rows=slice(top, top + height),
        columns=slice(left, left + width),
        full_area_px=int(label_mask.sum()),
        category_id=1,
        instance_id="x",
    )


@pytest.fixture
def photo() -> np.ndarray:
    rows, columns = np.mgrid[:24, :28]
    return np.stack([rows * 8, columns * 7, rows * 3 + columns * 4], axis=-1).astype(np.uint8)


@pytest.fixture
def blob() -> np.ndarray:
    rows, columns = np.mgrid[-6:7, -7:8]
    return np.hypot(rows, columns * 6 / 7) < 6.2


@pytest.mark.parametrize("mode", ["hard", "gaussian", "poisson"])
def test_no_pixel_outside_the_label_mask_changes(photo, blob, mode):
    image = photo.copy()
    blend(image, cutout(np.full((*blob.shape, 3), 220, dtype=np.uint8), blob), mode)
    outside = np.ones(photo.shape[:2], dtype=bool)
    outside[4:17, 3:18] = ~blob
    np.testing.assert_array_equal(image[outside], photo[outside])
    assert (image != photo).any()


@pytest.mark.parametrize("mode", BLEND_MODES)
@pytest.mark.parametrize(("top", "left"), [(4, 3), (0, 0), (11, 13)])
def test_pasting_what_is_there_already_changes_nothing(photo, blob, mode, top, left):
    # Shows at once if a mode puts the object one pixel off.
    image = photo.copy()
    window = slice(top, top + 13), slice(left, left + 15)
    blend(image, cutout(photo[window].copy(), blob, top=top, left=left), mode)
    # Poisson: to the solver the object goes on flat beyond its edge; one pixel off would be 7.
    assert np.abs(image.astype(int) - photo).max() <= (6 if mode == "poisson" else 0)


def test_gaussian_reproduces_its_golden_row():
    # The image's border cuts it on three sides: it fades on the fourth only.
    image = np.zeros((9, 12, 3), dtype=np.uint8)
    mask = np.ones((9, 7), dtype=bool)
    blend(image, cutout(np.full((9, 7, 3), 200, dtype=np.uint8), mask, top=0, left=0), "gaussian")
    # OpenCV's kernel of 5 px is 1 4 6 4 1 / 16: of 200, 15/16 and 11/16 remain at the edge.
    np.testing.assert_array_equal(image[..., 0], [[200] * 5 + [188, 138] + [0] * 5] * 9)


def test_poisson_takes_gradients_from_the_object_and_colours_from_the_photograph():
    image = np.full((40, 40, 3), 60, dtype=np.uint8)
    columns = np.arange(24)
    rgb = np.repeat(np.where((columns // 6) % 2, 180, 200), 24).reshape(24, 24).T
    mask = np.zeros((24, 24), dtype=bool)
    mask[2:22, 2:22] = True
    rgb = np.repeat(rgb[..., None], 3, axis=2).astype(np.uint8)
    blend(image, cutout(rgb, mask, top=8, left=8), "poisson")
    inner = image[12:28, 12:28, 0].astype(int)
    assert 35 < inner.mean() < 85, "the level is that of the photograph, not 190"
    assert inner.max() - inner.min() >= 12, "the stripes are those of the object"


def golden_scene(mode: str) -> np.ndarray:
    """A striped ellipse with a soft rim over a gradient, cut by the image's left border."""
    rows, columns = np.mgrid[:64, :80]
    image = np.stack([rows * 3, columns * 3, 255 - rows - columns], axis=-1).astype(np.uint8)
    y, x = np.mgrid[-20:20, -18:26]
    alpha = (np.clip((1 - np.hypot(y / 18, (x - 4) / 24)) * 6, 0, 1) * 255).astype(np.uint8)
    stripes = np.where(x // 6 % 2 == 0, 230, 90).astype(np.uint8)
    rgb = np.stack([stripes, 255 - stripes, np.full_like(stripes, 40)], axis=-1)
    pasted = cutout(rgb, alpha >= 128, top=12, left=0)
    blend(image, dataclasses.replace(pasted, alpha=alpha), mode)
    return image


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_every_mode_reproduces_its_golden_image(mode):
    golden = np.asarray(Image.open(GOLDEN / f"{mode}.png"))
    difference = np.abs(golden_scene(mode).astype(int) - golden)
    # OpenCV may solve Poisson's equation with other rounding from release to release.
    assert difference.max() <= (3 if mode == "poisson" else 0)


def test_no_two_modes_have_the_same_golden_image():
    contents = {(GOLDEN / f"{mode}.png").read_bytes() for mode in BLEND_MODES}
    assert len(contents) == len(BLEND_MODES)
