from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from bsgal_paste import InstancePool, PoolFormatError, _index_file


@pytest.fixture
def any_size_is_large(monkeypatch):
    monkeypatch.setattr(_index_file, "MIN_INDEXED_ROWS", 1)


def listing(pool: InstancePool) -> list[tuple[str, int]]:
    ids = pool.category_ids_of(np.arange(len(pool))).tolist()
    return [(pool.instance_id(i), ids[i]) for i in range(len(pool))]


def test_a_small_pool_is_left_as_it_is(write_pool):
    root = write_pool([{}])
    InstancePool.open(root)
    assert not (root / "manifest.index").exists()


def test_a_large_pool_is_the_same_from_its_kept_index(write_pool, any_size_is_large, monkeypatch):
    root = write_pool([{"category_id": 3 - i % 3} for i in range(7)])
    monkeypatch.setattr(_index_file, "MIN_INDEXED_ROWS", 100)
    first = InstancePool.open(root)
    monkeypatch.setattr(_index_file, "MIN_INDEXED_ROWS", 1)
    InstancePool.open(root)
    monkeypatch.setattr(_index_file, "read_pool_index", None)
    second = InstancePool.open(root)
    assert listing(first) == listing(second)
    assert first.card() == second.card()
    np.testing.assert_array_equal(first.read(4).rgba, second.read(4).rgba)


def test_a_changed_manifest_makes_a_new_index(write_pool, any_size_is_large):
    root = write_pool([{}, {}])
    InstancePool.open(root)
    manifest = root / "manifest.jsonl"
    manifest.write_text(manifest.read_text().splitlines()[0] + "\n")
    assert len(InstancePool.open(root)) == 1


def test_no_damage_to_an_index_gives_other_instances(write_pool, any_size_is_large, caplog):
    root = write_pool([{"category_id": 1 + i % 3} for i in range(9)])
    expected = listing(InstancePool.open(root))
    path = root / "manifest.index"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(120):
        damaged = bytearray(content)
        place = int(rng.integers(len(content)))
        if trial % 3 == 0:
            del damaged[place:]
        elif trial % 3 == 1:
            damaged[place] ^= 1 << int(rng.integers(8))
        else:
            damaged[place : place + 16] = rng.bytes(16)
        path.write_bytes(damaged)
        caplog.clear()
        pool = InstancePool.open(root)
        assert listing(pool) == expected
        assert pool.read(3).instance_id == expected[3][0]
        assert len(caplog.records) == 1
        assert "manifest.index is made again" in caplog.text
        assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"[]\n", b"\xff\xfe", "half"])
def test_a_damaged_index_is_made_again(write_pool, any_size_is_large, damage):
    root = write_pool([{}, {}])
    InstancePool.open(root)
    path = root / "manifest.index"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 5] if damage == "half" else damage)
    assert len(InstancePool.open(root)) == 2
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_to_is_no_obstacle(write_pool, any_size_is_large, caplog):
    root = write_pool([{}, {}])
    # A folder where the new index would be written.
    (root / f".manifest.index.{os.getpid()}.tmp").mkdir()
    assert len(InstancePool.open(root)) == 2
    assert "kept in memory, not on disk" in caplog.text


def test_a_mapped_pool_pickles_as_a_name(write_pool, any_size_is_large):
    pool = InstancePool.open(write_pool([{"category_id": 1 + i % 2} for i in range(60)]))
    content = pickle.dumps(pool)
    assert b"i059" not in content
    copy = pickle.loads(content)
    assert listing(copy) == listing(pool)
    np.testing.assert_array_equal(copy.read(59).rgba, pool.read(59).rgba)


def test_a_pool_that_changed_before_unpickling_is_an_error(write_pool, any_size_is_large):
    root = write_pool([{}, {}])
    content = pickle.dumps(InstancePool.open(root))
    (root / "manifest.index").unlink()
    with pytest.raises(PoolFormatError, match="changed since the pool was opened"):
        pickle.loads(content)
