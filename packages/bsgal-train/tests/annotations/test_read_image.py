from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_train.annotations import ImageRecord
from bsgal_train.annotations.read_image import read_image
from bsgal_train.errors import CorruptImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def record(path: Path, height: int = 20, width: int = 30) -> ImageRecord:
    return ImageRecord(1, path, height, width, ())


def test_colours_are_red_green_blue(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    np.testing.assert_array_equal(read_image(record(path)), PIXELS)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).convert(mode).save(path)
    image = read_image(record(path))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8


def test_images_are_turned_upright(tmp_path):
    path = tmp_path / "image.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    Image.fromarray(np.rot90(PIXELS)).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(record(path)), PIXELS)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_cut_off_file_is_reported_with_its_path(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CorruptImageError, match=rf"image\.{suffix} cannot be read"):
        read_image(record(path))


def test_a_file_that_is_no_image_is_reported(tmp_path):
    path = tmp_path / "image.png"
    path.write_text("not an image")
    with pytest.raises(CorruptImageError, match="cannot identify image file"):
        read_image(record(path))


def test_a_file_that_vanished_is_reported(tmp_path):
    with pytest.raises(CorruptImageError, match="No such file"):
        read_image(record(tmp_path / "absent.png"))


def test_another_size_than_annotated_is_reported(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    with pytest.raises(CorruptImageError, match="has 30 x 20 px, but was annotated at 31 x 20 px"):
        read_image(record(path, width=31))
