from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import AnnotatedImage, CopyPaste, FixedSampler, UniformScale
from bsgal_paste._preview import PASTED_RGB, REAL_RGB, draw_result

NAMES = {1: "apple", 2: "ball"}


def drawn(pool, brightness: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one real object at the lower right and one pasted at the upper left; the boxes too."""
    masks = np.zeros((1, 240, 320), dtype=bool)
    masks[0, 150:220, 220:300] = True
    image = np.full((240, 320, 3), brightness, dtype=np.uint8)
    paste = CopyPaste(
        pool, FixedSampler(pool, ["memory-0"]), UniformScale(scale_range=(0.25, 0.25))
    )
    parameters = paste.sample_parameters((240, 320), np.array([2]), np.random.default_rng(0))
    parameters.centres_xy[:] = (0.2, 0.3)
    result = paste.apply(AnnotatedImage(image, masks, [2]), parameters)
    return draw_result(result, NAMES, tile_px=320), result.boxes_xyxy


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Give the relative luminance of WCAG 2.1."""
    linear = np.where(rgb <= 10, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_every_name_can_be_read_on_any_photograph(pool, brightness):
    picture, boxes = drawn(pool, brightness)
    for box, colour in zip(boxes, (REAL_RGB, PASTED_RGB), strict=True):
        left, top = box[:2].round().astype(int)
        plate = picture[top - 10 : top, left : left + 25]
        ground = (plate == colour).all(axis=-1)
        assert ground.mean() > 0.3, "a plate of the instance's colour"
        ink = luminance(plate.astype(float)).min()
        contrast = (luminance(np.array(colour, dtype=float)) + 0.05) / (ink + 0.05)
        # What WCAG 2.1 asks of small text.
        assert contrast > 4.5


def test_names_at_the_border_stay_inside(pool):
    masks = np.zeros((1, 96, 128), dtype=bool)
    masks[0, :20, 120:] = True
    target = AnnotatedImage(np.zeros((96, 128, 3), dtype=np.uint8), masks, [1])
    result = CopyPaste(None, source="none")(target, np.random.default_rng(0))
    picture = draw_result(result, {1: "a_rather_long_name"}, tile_px=128)
    columns = (picture == REAL_RGB).all(axis=-1).any(axis=0)
    assert columns[20:].mean() > 0.9, "the plate is moved to the left"
