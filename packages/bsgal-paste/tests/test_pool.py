from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from bsgal_paste import (
    CorruptInstanceError,
    EmptyPoolError,
    InstancePool,
    PoolFormatError,
    open_folder_pool,
)
from bsgal_paste._pool_index import StringTable, safe_relative_path


def test_a_pool_lists_its_kept_instances_by_category(write_pool):
    root = write_pool(
        [{"category_id": 9}, {"category_id": 2}, {"status": "dropped", "file": None},
         {"category_id": 9, "label_mask_threshold": 200}]
    )  # fmt: skip
    pool = InstancePool.open(root)
    assert len(pool) == 3
    assert pool.category_ids.tolist() == [2, 9]
    assert pool.counts.tolist() == [1, 2]
    assert pool.category_names == {2: "thing_2", 9: "thing_9"}
    assert [pool.instance_id(i) for i in range(3)] == ["i001", "i000", "i003"]
    assert pool.positions_of(9) == range(1, 3)
    assert len(pool.positions_of(4)) == 0
    instance = pool.read(2)
    assert (instance.instance_id, instance.category_id) == ("i003", 9)
    assert instance.label_mask_threshold == 200
    assert instance.rgba.shape == (20, 24, 4)
    assert instance.rgba.dtype == np.uint8


def test_the_card_counts_kept_and_dropped(write_pool):
    root = write_pool([{}, {"status": "dropped", "file": None, "reason": "too small"}])
    card = InstancePool.open(root).card()
    assert (card.n_kept, card.n_dropped, card.counts) == (1, 1, {1: 1})
    assert card.meta["source"] == {"from": "test"}
    assert len(card.manifest_sha256) == 64
    json.dumps(card.counts)


def test_the_last_row_of_an_instance_counts(write_pool):
    rows = [
        {"instance_id": "a"},
        {"instance_id": "b"},
        {"instance_id": "a", "status": "dropped", "file": None},
    ]
    pool = InstancePool.open(write_pool(rows))
    assert [pool.instance_id(i) for i in range(len(pool))] == ["b"]


def test_the_order_of_rows_does_not_matter(write_pool):
    rows = [{"instance_id": f"i{i}", "category_id": 1 + i % 3} for i in range(9)]
    one = InstancePool.open(write_pool(rows, "one"))
    two = InstancePool.open(write_pool(rows[::-1], "two"))
    assert [one.instance_id(i) for i in range(9)] == [two.instance_id(i) for i in range(9)]


def test_a_torn_last_line_is_dropped(write_pool):
    root = write_pool([{}, {}])
    manifest = root / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + '{"instance_id": "i00')
    assert len(InstancePool.open(root)) == 2


def test_a_folder_without_meta_is_no_pool(tmp_path):
    with pytest.raises(PoolFormatError, match="not an instance pool: it has no meta"):
        InstancePool.open(tmp_path)


def test_another_schema_version_is_refused(write_pool):
    with pytest.raises(PoolFormatError, match=r"instance_pool/2.*reads 'bsgal.instance_pool/1'"):
        InstancePool.open(write_pool([{}], schema="bsgal.instance_pool/2"))


def test_a_missing_manifest_is_named(write_pool):
    root = write_pool([{}])
    (root / "manifest.jsonl").unlink()
    with pytest.raises(PoolFormatError, match=r"manifest.jsonl is missing"):
        InstancePool.open(root)


def test_a_pool_without_kept_rows_is_an_error(write_pool):
    with pytest.raises(EmptyPoolError, match="1 rows, all dropped"):
        InstancePool.open(write_pool([{"status": "dropped", "file": None}]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"status": "maybe"}, "line 2: status must be"),
        ({"category_id": "3"}, "line 2: category_id must be int"),
        ({"file": None}, "line 2: file must be str"),
        ({"instance_id": "", "file": "x.png"}, "line 2: instance_id must be str"),
        ({"label_mask_threshold": 256}, "line 2: label_mask_threshold must be"),
        ({"category_name": "other"}, "line 2: category 1 is called 'other'"),
        ({"file": "../secret.png"}, "line 2: file '../secret.png' must be a relative path"),
        ({"file": "instances/1/i000.png"}, "line 2: file must be 'instances/1/i001.png', as"),
        ({"file": "instances/2/i001.png"}, "line 2: file must be 'instances/1/i001.png', as"),
        ({"file": "a.png|b.png"}, r"line 2: file 'a.png\|b.png' must be a relative path"),
        ({"file": "a\0.png"}, r"line 2: file 'a\\x00.png' must be a relative path"),
        (
            {"file": "a\\..\\..\\b.png"},
            r"must be a relative path inside .* without '\|' and backslash",
        ),
        ({"reason": 5}, "line 2: reason must be text or null, got 5"),
        ({"category_id": True}, "line 2: category_id must be int, 0 to .* got True"),
        (
            {"category_id": 2**63},
            "line 2: category_id must be int, 0 to .* got 9223372036854775808",
        ),
        ({"category_id": -1}, "line 2: category_id must be int, 0 to .* got -1"),
        ({"category_name": "\ud800"}, r"line 2: category_name must be str .* got '\\ud800'"),
        ({"label_mask_threshold": None}, "line 2: label_mask_threshold must be .* got None"),
        ({"label_mask_threshold": True}, "line 2: label_mask_threshold must be"),
        ({"bbox_xywh": [0, 0, 24]}, "line 2: bbox_xywh must be 4 whole numbers"),
        ({"bbox_xywh": [0, 0, 24, 0]}, "line 2: bbox_xywh must be 4 whole numbers"),
        ({"bbox_xywh": [0, 0, 24.5, 20]}, "line 2: bbox_xywh must be 4 whole numbers"),
        ({"bbox_xywh": [0, 0, 1e400, 20]}, "line 2: (not valid JSON|bbox_xywh must be)"),
        ({"sha256": "0" * 63}, "line 2: sha256 must be 64 hexadecimal digits or null"),
        ({"status": "dropped"}, "line 2: file must be null in a dropped row"),
        ({"status": "dropped", "category_id": None}, "line 2: category_id must be int"),
    ],
)
def test_a_bad_row_is_named_by_its_line(write_pool, row, message):
    with pytest.raises(PoolFormatError, match=message):
        InstancePool.open(write_pool([{}, row]))


def test_a_line_that_is_no_json_is_named(write_pool):
    root = write_pool([{}])
    manifest = root / "manifest.jsonl"
    manifest.write_text("{oops\n" + manifest.read_text())
    with pytest.raises(PoolFormatError, match="line 1: not valid JSON"):
        InstancePool.open(root)


def test_a_category_may_have_the_id_0(write_pool):
    assert InstancePool.open(write_pool([{"category_id": 0}])).category_ids.tolist() == [0]


@pytest.mark.parametrize("path", [None, 5, 1.5, b"pool", ["pool"], {}, "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises((TypeError, ValueError), match="`path` must be a path, got"):
        InstancePool.open(path)


@pytest.mark.parametrize("content", ["[" * 100_000, "\ufeff{}", "[]", "NaN", ""])
def test_a_malformed_meta_file_is_named(write_pool, content):
    root = write_pool([{}])
    (root / "meta.json").write_text(content)
    with pytest.raises(PoolFormatError, match=r"meta.json(: not valid JSON| has schema None)"):
        InstancePool.open(root)


@pytest.mark.parametrize(
    "file",
    [
        "/etc/x.png",
        "a/../../x.png",
        "..",
        "C:\\x.png",
        "C:x.png",
        "\\\\host\\x",
        "a\\..\\..\\x",
        "",
        ".",
        "./",
    ],
)
def test_paths_that_leave_the_pool_are_refused(file):
    with pytest.raises(PoolFormatError, match="relative path inside the pool"):
        safe_relative_path(file, "row 1")


def test_a_link_that_leaves_the_pool_is_refused(write_pool, tmp_path):
    root = write_pool([{}])
    image = root / "instances/1/i000.png"
    image.rename(tmp_path / "outside.png")
    image.symlink_to(tmp_path / "outside.png")
    with pytest.raises(CorruptInstanceError, match="outside the pool's folder"):
        InstancePool.open(root).read(0)


def test_a_missing_image_is_named_with_its_row_and_file(write_pool):
    root = write_pool([{}, {}])
    (root / "instances/1/i001.png").unlink()
    pool = InstancePool.open(root)
    with pytest.raises(CorruptInstanceError, match=r"'i001' \(line 2 of .*i001\.png") as caught:
        pool.read(1)
    assert caught.value.instance_id == "i001"
    assert pickle.loads(pickle.dumps(caught.value)).instance_id == "i001"


def test_a_damaged_image_is_either_read_or_named_never_another_error(write_pool):
    root = write_pool([{}])
    path = root / "instances/1/i000.png"
    good = path.read_bytes()
    pool = InstancePool.open(root)
    rng = np.random.default_rng(0)
    n_refused = 0
    for trial in range(200):
        damaged = bytearray(good)
        if trial % 2:
            del damaged[rng.integers(len(good)) :]
        else:
            damaged[rng.integers(len(good))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            pool.read(0)
        except CorruptInstanceError:
            n_refused += 1
    assert n_refused > 50


def hashed_row(disc) -> dict:
    content = io.BytesIO()
    Image.fromarray(disc(20, 24, (0, 100, 100))).save(content, "PNG")
    return {"sha256": hashlib.sha256(content.getvalue()).hexdigest(), "bbox_xywh": [3, 4, 24, 20]}


def test_a_file_that_the_row_does_not_describe_is_refused(write_pool, disc):
    root = write_pool([hashed_row(disc)])
    path = root / "instances/1/i000.png"
    pool = InstancePool.open(root)
    assert pool.read(0).rgba.shape == (20, 24, 4)
    Image.fromarray(disc(20, 24, (9, 9, 9))).save(path)
    with pytest.raises(CorruptInstanceError, match="its SHA-256 differs"):
        pool.read(0)
    root = write_pool([{"bbox_xywh": [3, 4, 24, 21]}], "other")
    with pytest.raises(CorruptInstanceError, match="it has 24 x 20 px, its row says 24 x 21"):
        InstancePool.open(root).read(0)


def with_header(png: bytes, width: int, height: int) -> bytes:
    """Give a PNG another size in its header, with the header's checksum as it must be."""
    header = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda png: with_header(png, 1, 1), "more pixels than the 1 x 1"),
        (lambda png: with_header(png, 24, 19), "more pixels than the 24 x 19"),
        (lambda png: with_header(png, 24, 21), "fewer pixels than the 24 x 21"),
        (lambda png: with_header(png, 0, 20), "the header says 0 x 20"),
        (lambda png: with_header(png, 60_000, 60_000), "60000 x 60000 px is over the limit"),
        (lambda png: png[:-9], "it is cut off"),
        (lambda png: png[:20], "it is no PNG, or cut off in its header"),
        (lambda png: png[:60] + bytes([png[60] ^ 1]) + png[61:], "a checksum in it is wrong"),
    ],
)
def test_a_png_that_lies_is_refused_without_a_row_that_says_so(write_pool, damage, message):
    root = write_pool([{}])
    path = root / "instances/1/i000.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptInstanceError, match=message):
        InstancePool.open(root).read(0)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("width", [1, 3, 8, 24])
def test_a_whole_png_is_read(tmp_path, width, interlaced):
    rgba = np.random.default_rng(0).integers(0, 256, (9, width, 4), dtype=np.uint8)
    content = adam7_png(rgba) if interlaced else saved_png(rgba)
    (tmp_path / "cup").mkdir()
    (tmp_path / "cup" / "a.png").write_bytes(content)
    np.testing.assert_array_equal(open_folder_pool(tmp_path).read(0).rgba, rgba)


def saved_png(rgba: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(rgba).save(content, "PNG")
    return content.getvalue()


def adam7_png(rgba: np.ndarray) -> bytes:
    """Write an interlaced PNG, which Pillow reads and does not write."""
    # First row, step of rows, first column, step of columns.
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2)]
    raw = b""
    for top, step_y, left, step_x in [*passes, (1, 2, 0, 1)]:
        part = rgba[top::step_y, left::step_x]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    header = struct.pack(">IIBBBBB", rgba.shape[1], rgba.shape[0], 8, 6, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_what_is_no_regular_file_is_refused_not_waited_for(write_pool):
    root = write_pool([{}])
    path = root / "instances/1/i000.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptInstanceError, match="no regular file"):
        InstancePool.open(root).read(0)


def test_a_link_to_itself_is_refused(write_pool):
    root = write_pool([{}])
    path = root / "instances/1/i000.png"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(CorruptInstanceError, match="cannot be read"):
        InstancePool.open(root).read(0)


def test_a_damaged_image_is_refused_whatever_pillow_was_told(write_pool, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    root = write_pool([{}])
    path = root / "instances/1/i000.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptInstanceError, match="cut off"):
        InstancePool.open(root).read(0)


def test_an_image_that_is_not_rgba_is_refused(write_pool):
    root = write_pool([{}])
    Image.new("RGB", (5, 5)).save(root / "instances/1/i000.png")
    with pytest.raises(CorruptInstanceError, match="must be RGBA, it is RGB"):
        InstancePool.open(root).read(0)


def test_an_image_over_the_size_limit_is_refused_unread(write_pool):
    pool = InstancePool.open(write_pool([{}]), max_image_pixels=479)
    with pytest.raises(CorruptInstanceError, match="24 x 20 px is over the limit of 479"):
        pool.read(0)


def test_a_pool_survives_pickling(write_pool):
    pool = InstancePool.open(write_pool([{}, {"category_id": 2}]))
    copy = pickle.loads(pickle.dumps(pool))
    np.testing.assert_array_equal(copy.read(1).rgba, pool.read(1).rgba)


def test_pickling_costs_little_per_instance(write_pool):
    # Loader workers get the pool by pickling where processes are not forked.
    rgba = np.zeros((1, 1, 4), dtype=np.uint8)
    small = InstancePool.from_arrays([rgba] * 10, [1] * 10)
    large = InstancePool.from_arrays([rgba] * 1010, [1] * 1010)
    small._images = large._images = None  # the pixels are not the index
    assert (len(pickle.dumps(large)) - len(pickle.dumps(small))) / 1000 < 60


def test_a_position_out_of_range_is_refused(pool):
    with pytest.raises(IndexError, match=r"positions must be 0 \.\. 2, got 3"):
        pool.read(3)
    with pytest.raises(IndexError, match="got -1"):
        pool.instance_id(-1)


def test_every_position_belongs_to_the_category_whose_range_holds_it(pool):
    for category_id in pool.category_ids:
        positions = pool.positions_of(int(category_id))
        assert set(pool.category_ids_of(positions).tolist()) == {int(category_id)}
        assert {pool.read(i).category_id for i in positions} == {int(category_id)}


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, "3 images need 3", {"category_ids": [1]}),
        (ValueError, "must be unique", {"instance_ids": ["a", "a", "b"]}),
        (ValueError, "must be 0-255, got 256", {"label_mask_threshold": 256}),
        (
            TypeError,
            "`label_mask_threshold` must be an int, got str",
            {"label_mask_threshold": "1"},
        ),
        (TypeError, "`rgba_images` must be a sequence, got int", {"rgba_images": 5}),
        (TypeError, "`category_ids` must be a sequence, got NoneType", {"category_ids": None}),
        (TypeError, "`instance_ids` must be a sequence, got str", {"instance_ids": "abc"}),
        (TypeError, "`instance_ids` must be texts", {"instance_ids": [1, 2, 3]}),
        (TypeError, "`category_names` must map", {"category_names": {1: 2}}),
        (ValueError, "`category_ids` must be integers from 0", {"category_ids": [1, 2, 2**70]}),
        (
            TypeError,
            r"rgba_images\[0\]` must be a uint8",
            {"rgba_images": [np.ones((2, 2, 4))] * 3},
        ),
        (
            ValueError,
            r"rgba_images\[0\]` must have shape",
            {"rgba_images": [np.ones((2, 2, 3), dtype=np.uint8)] * 3},
        ),
    ],
)
def test_bad_arrays_for_a_pool_are_refused(error, message, changes):
    good = {
        "rgba_images": [np.ones((2, 2, 4), dtype=np.uint8)] * 3,
        "category_ids": [1, 2, 3],
    }
    with pytest.raises(error, match=message):
        InstancePool.from_arrays(**{**good, **changes})


@given(st.lists(st.text()))
def test_a_string_table_gives_its_strings_back(strings):
    table = StringTable.of(strings)
    assert [table[i] for i in range(len(table))] == strings
