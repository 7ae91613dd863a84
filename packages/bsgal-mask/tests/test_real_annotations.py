from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from bsgal_mask import RealCropError, RealCrops

HUGE = 10**400
SQUARE = [60, 40, 110, 40, 110, 80, 60, 80]


class ColourClip:
    """The mean colour of an image as its features."""

    def config(self):
        return {"model": "colour"}

    def image_features(self, images, *, margin_value):
        for image in images:
            colour = image.reshape(-1, 3).mean(axis=0) + 1
            yield (colour / np.linalg.norm(colour)).astype(np.float32)


@pytest.fixture
def data():
    image = {"id": 1, "width": 160, "height": 120, "file_name": "1.png"}
    annotation = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [60, 40, 50, 40]}
    return {"images": [image], "annotations": [annotation | {"segmentation": [SQUARE]}]}


@pytest.fixture
def read(tmp_path):
    """Return a function that reads annotations, given as bytes or JSON."""
    picture = np.full((120, 160, 3), 90, np.uint8)
    picture[40:80, 60:110] = (200, 30, 30)
    Image.fromarray(picture).save(tmp_path / "1.png")

    def read(content, **settings):
        path = tmp_path / "lvis.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return RealCrops.from_lvis(ColourClip(), path, tmp_path, **settings).means

    return read


def test_an_object_is_read_with_a_byte_order_mark_or_without(data, read):
    plain = read(data)
    marked = read(b"\xef\xbb\xbf" + json.dumps(data).encode())
    assert [*plain] == [*marked] == [7]
    np.testing.assert_array_equal(plain[7], marked[7])


def test_category_id_0_and_the_largest_id_are_ids(data, read):
    annotation = data["annotations"][0]
    for category_id in (0, 2**63 - 1):
        data["annotations"] = [annotation | {"category_id": category_id}]
        assert [*read(data)] == [category_id]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{\0}\0", b"{}",
     b'{"images": 3, "annotations": []}', b'{"images": [], "annotations": {}}',
     b'{"images": [], "annotations": [3]}', b'{"images": [null], "annotations": []}'],
)  # fmt: skip
def test_what_is_no_annotation_file_is_named(read, content):
    with pytest.raises(RealCropError, match=r"lvis\.json is not an LVIS annotation file"):
        read(content)


WRONG = {
    "id": [None, "5", True, -1, 2**63, 2**70, HUGE, [], {}],
    "image_id": [None, "1", 9, 2**70, [], {}],
    "category_id": [None, "7", True, -1, 7.5, 2**63, 2**70, HUGE, [], {}],
    "bbox": [None, 3, [], [60, 40, 50], [60, 40, "50", 40], [60, 40, -1, 40], [1e9, 0, 5, 5],
             [60, 40, 1e30, 40], [60, 40, HUGE, 40], {}],
    "segmentation": [None, 3, {}, [], "text", [[]], [[1, 2]], [[1, 2, 3, 4, 5]], [["1"] * 6],
                     [[1e9] * 6], [[1e30] * 6], [[-1e5] * 6], [[HUGE] * 6], [[True] * 6],
                     [SQUARE, 3], {"size": [120, 160], "counts": [0, 19200]}, [[None] * 6],
                     [[[1, 2]] * 6]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_field_of_an_annotation_that_is_wrong_is_named(data, read, field, value):
    data["annotations"][0][field] = value
    with pytest.raises(RealCropError, match=rf"annotation (5|number 1)\b.*{field}"):
        read(data)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400"])
@pytest.mark.parametrize("place", [b"110, 80", b"50, 40"])
def test_numbers_that_are_none_are_refused(data, read, number, place):
    content = json.dumps(data).encode()
    assert content.count(place) == 1
    with pytest.raises(RealCropError, match=r"lvis\.json"):
        read(content.replace(place, number + place[-4:]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("id", None), ("id", "1"), ("id", 2**70), ("id", []), ("file_name", 3), ("file_name", []),
     ("file_name", "../1.png"), ("file_name", "\0"), ("file_name", "\ud800"), ("coco_url", 3)],
)  # fmt: skip
def test_a_field_of_an_image_that_is_wrong_is_named(data, read, field, value):
    if field == "coco_url":
        del data["images"][0]["file_name"]
    data["images"][0][field] = value
    with pytest.raises(RealCropError, match=rf"image number 1\b.*{field}"):
        read(data)


def saved(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("damage", [
    {"means": np.zeros((2, 3), np.float32)}, {"means": np.zeros(1, np.float32)},
    {"means": np.full((1, 3), np.nan, np.float32)}, {"means": np.zeros((1, 3))},
    {"category_ids": np.array(["7"])}, {"category_ids": np.array([7.5])},
    {"category_ids": np.array([[7]])}, {"category_ids": np.array([-7])},
])  # fmt: skip
def test_a_cache_that_is_none_is_named(data, read, tmp_path, damage):
    cache = tmp_path / "features.npz"
    read(data, cache=cache)
    with np.load(cache) as whole:
        arrays = {name: whole[name] for name in whole.files}
    cache.write_bytes(saved(**(arrays | damage)))
    with pytest.raises(RealCropError, match=r"features\.npz is not a cache"):
        read(data, cache=cache)


def test_any_damage_to_a_cache_is_an_error_or_harmless(data, read, tmp_path):
    cache = tmp_path / "features.npz"
    expected = read(data, cache=cache)
    whole = cache.read_bytes()
    rng = np.random.default_rng(0)
    n_refused = 0
    for trial in range(200):
        content = bytearray(whole)
        if trial % 3:
            content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        else:
            content = content[: rng.integers(len(whole))]
        cache.write_bytes(content)
        try:
            means = read(data, cache=cache)
        except RealCropError:
            n_refused += 1
        else:
            np.testing.assert_array_equal(means[7], expected[7])
    assert n_refused > 100


def test_a_cache_that_would_fill_the_memory_is_named(data, read, tmp_path):
    cache = tmp_path / "features.npz"
    read(data, cache=cache)
    with zipfile.ZipFile(cache) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["means.npy"] = members["means.npy"].replace(b"(1, 3), ", b"(9999999999999, 3), ")
    with zipfile.ZipFile(cache, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(RealCropError, match=r"features\.npz is not a cache"):
        read(data, cache=cache)
