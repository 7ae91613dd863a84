from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bsgal_paste import CorruptInstanceError, EmptyPoolError, InstancePool, PoolFormatError
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


@pytest.mark.parametrize(
    "file", ["/etc/x.png", "a/../../x.png", "..", "C:\\x.png", "\\\\host\\x", ""]
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
