from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from bsgal_mask import ImageError
from bsgal_mask._files import read_file
from bsgal_mask._images import decode_image, encode_rgba


def write(path, picture, kind="PNG"):
    picture.save(path, kind)
    return path


def read_image(path, *, max_image_px):
    return decode_image(read_file(path), max_image_px=max_image_px)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_eight_bit_modes_become_rgb(tmp_path, mode):
    path = write(tmp_path / "a.png", Image.new("RGB", (5, 4), "white").convert(mode))
    image = read_image(path, max_image_px=100)
    assert image.shape == (4, 5, 3)
    assert image.dtype == np.uint8
    assert (image == 255).all()


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(np.full((4, 4), 40000, np.uint16)))
    with pytest.raises(ImageError, match="8 bits per channel are required"):
        read_image(path, max_image_px=100)


def test_an_image_beyond_the_limit_is_refused_before_decoding(tmp_path):
    path = write(tmp_path / "a.png", Image.new("1", (20_000, 20_000)))
    with pytest.raises(ImageError, match=r"limit"):
        read_image(path, max_image_px=64_000_000)
    small = write(tmp_path / "b.png", Image.new("L", (11, 10)))
    with pytest.raises(ImageError, match="11 x 10 pixels, the limit is 109 pixels"):
        read_image(small, max_image_px=109)
    assert read_image(small, max_image_px=110).shape == (10, 11, 3)


def test_a_file_pillow_itself_calls_a_bomb_is_refused_without_a_warning(tmp_path):
    path = write(tmp_path / "a.png", Image.new("1", (10_000, 9_500)))
    with pytest.raises(ImageError, match="the limit is 100 pixels"):
        read_image(path, max_image_px=100)


def test_a_missing_file_is_named_so(tmp_path):
    with pytest.raises(ImageError, match=r"cannot read the file \(No such file"):
        read_image(tmp_path / "absent.png", max_image_px=100)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_upright_as_its_exif_says(kind, orientation):
    picture = Image.new("RGB", (24, 16), "white")
    picture.paste("navy", (0, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    picture.save(stream, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(stream)).convert("RGB"))
    image = decode_image(stream.getvalue(), max_image_px=1000)
    np.testing.assert_array_equal(image, expected)
    assert image.shape == ((24, 16, 3) if 5 <= orientation <= 8 else (16, 24, 3))


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"\xff" * 40])
def test_damaged_exif_is_an_image_error_or_harmless(exif):
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), "white").save(stream, "PNG", exif=exif)
    with contextlib.suppress(ImageError):
        assert decode_image(stream.getvalue(), max_image_px=1000).shape == (16, 24, 3)


@pytest.mark.parametrize("channels", [3, 4])
def test_of_colours_with_sixteen_bits_the_upper_eight_are_taken(channels):
    pixels = np.random.default_rng(0).integers(0, 2**16, (6, 5, channels), np.uint16)
    _, png = cv2.imencode(".png", pixels)
    image = decode_image(png.tobytes(), max_image_px=100)
    np.testing.assert_array_equal(image, (pixels[..., 2::-1] >> 8).astype(np.uint8))


def test_other_formats_are_refused(tmp_path):
    path = write(tmp_path / "a.png", Image.new("L", (5, 5)), "BMP")
    with pytest.raises(ImageError, match="damaged or not a PNG"):
        read_image(path, max_image_px=100)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_any_damage_is_an_image_error_or_harmless(tmp_path, kind):
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(stream, kind)
    whole = stream.getvalue()
    path = tmp_path / "a"
    n_refused = 0
    for trial in range(150):
        content = bytearray(whole)
        if trial % 2:
            content = content[: rng.integers(len(whole))]
        else:
            content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            assert read_image(path, max_image_px=10**6).ndim == 3
        except ImageError:
            n_refused += 1
    assert n_refused > 50


def test_rgba_keeps_the_colour_of_every_pixel_with_any_alpha_and_no_other():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 15, 3), np.uint8)
    before = image.copy()
    alpha = rng.choice([0, 1, 77, 254, 255], (16, 15)).astype(np.uint8)
    back = np.asarray(Image.open(io.BytesIO(encode_rgba(image, alpha))))
    np.testing.assert_array_equal(back[..., 3], alpha)
    np.testing.assert_array_equal(back[alpha > 0, :3], image[alpha > 0])
    assert not back[alpha == 0].any()
    np.testing.assert_array_equal(image, before)


def test_a_cut_outs_file_does_not_pay_for_the_background(drawn):
    image, label = drawn("disc")
    alpha = label.astype(np.uint8) * 255
    stream = io.BytesIO()
    Image.fromarray(np.dstack([image, alpha])).save(stream, "PNG")
    assert len(encode_rgba(image, alpha)) < 0.6 * len(stream.getvalue())
