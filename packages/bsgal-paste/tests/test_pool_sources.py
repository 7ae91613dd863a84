from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_paste import (
    AnnotationError,
    CorruptInstanceError,
    EmptyPoolError,
    InstancePool,
    PoolFormatError,
    lvis_pool,
    open_folder_pool,
    open_xpaste_pool,
    write_xpaste_json,
)
from bsgal_paste._lvis import encode_mask

CATEGORIES = [{"id": 1, "name": "apple"}, {"id": 2, "name": "ball"}, {"id": 3, "name": "cup"}]


@pytest.fixture
def folder(tmp_path: Path, disc) -> Path:
    root = tmp_path / "folder"
    for name, values in (("cup", (10, 20)), ("apple", (30,))):
        (root / name).mkdir(parents=True)
        for value in values:
            Image.fromarray(disc(20, 24, (value, 0, 0))).save(root / name / f"{value}.png")
    (root / "notes").mkdir()
    (root / "read.me").touch()
    return root


def listing(pool: InstancePool) -> list[tuple[str, int]]:
    ids = pool.category_ids_of(np.arange(len(pool))).tolist()
    return [(pool.instance_id(i), ids[i]) for i in range(len(pool))]


def test_a_folder_is_a_pool_named_by_its_folders(folder):
    pool = open_folder_pool(folder)
    assert listing(pool) == [("apple/30", 1), ("cup/10", 2), ("cup/20", 2)]
    assert pool.category_names == {1: "apple", 2: "cup"}
    matched = pool.match(CATEGORIES)
    assert listing(matched) == [("apple/30", 1), ("cup/10", 3), ("cup/20", 3)]
    assert matched.read(2).rgba[10, 12].tolist() == [20, 0, 0, 255]
    assert pool.card().counts == {1: 1, 2: 2}
    with pytest.raises(EmptyPoolError, match="one folder per category"):
        open_folder_pool(folder / "notes")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_folder_pool(folder / "nowhere")


def test_a_damaged_file_of_a_folder_is_named(folder):
    (folder / "cup" / "10.png").write_bytes(b"x")
    with pytest.raises(CorruptInstanceError, match=r"instance 'cup/10' .*cannot be read from"):
        open_folder_pool(folder).read(1)


def test_a_pool_goes_to_x_paste_and_back(folder, tmp_path):
    pool = open_folder_pool(folder).match(CATEGORIES)
    write_xpaste_json(pool, tmp_path / "pool.json")
    content = json.loads((tmp_path / "pool.json").read_text())
    assert sorted(content) == ["0", "2"]
    assert content["0"] == [f"*{folder.resolve()}/apple/30.png"]
    back = open_xpaste_pool(tmp_path / "pool.json", CATEGORIES)
    assert back.category_names == {1: "apple", 3: "cup"}
    assert back.counts.tolist() == [1, 2]
    for position in range(3):
        np.testing.assert_array_equal(back.read(position).rgba, pool.read(position).rgba)
    assert len(back.card().manifest_sha256) == 64


def test_pictures_with_masks_are_cut_out_at_the_largest_part(tmp_path):
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    picture[..., 0] = np.arange(40)
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[2:5, 2:5] = 255
    mask[10:25, 12:32] = 200
    mask[10, 12:32] = 100
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    (tmp_path / "pool.json").write_text(json.dumps({"1": ["a.png|m.png"], "0": []}))
    rgba = open_xpaste_pool(tmp_path / "pool.json", CATEGORIES).read(0).rgba
    assert rgba.shape == (14, 20, 4)
    assert (rgba[..., 3] == 200).all()
    assert rgba[0, :, 0].tolist() == list(range(12, 32))
    Image.fromarray(mask[:10]).save(tmp_path / "m.png")
    with pytest.raises(CorruptInstanceError, match="the mask has 40 x 10 px, the image 40 x 30"):
        open_xpaste_pool(tmp_path / "pool.json", CATEGORIES).read(0)
    Image.fromarray(mask // 2).save(tmp_path / "m.png")
    with pytest.raises(CorruptInstanceError, match="no pixel above 128"):
        open_xpaste_pool(tmp_path / "pool.json", CATEGORIES).read(0)


def test_pairs_that_share_a_picture_are_instances_of_their_own(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    for name, columns in (("m", slice(0, 3)), ("n", slice(4, 8))):
        mask = np.zeros((6, 8), dtype=np.uint8)
        mask[:, columns] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    (tmp_path / "pool.json").write_text(json.dumps({"0": ["a.png|m.png", "a.png|n.png"]}))
    pool = open_xpaste_pool(tmp_path / "pool.json", CATEGORIES)
    assert [pool.instance_id(i) for i in range(len(pool))] == ["1/a.png|m.png", "1/a.png|n.png"]
    assert [pool.read(i).rgba.shape[1] for i in range(2)] == [3, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must map class indices"),
        ('{"a": []}', "key 'a': must be a class index"),
        ('{"' + "9" * 5000 + '": []}', "must be a class index"),
        ('{"0": ["*a.png|m.png"]}', r"is neither '\*file' nor 'image\|mask'"),
        ("[" * 100_000, "not valid JSON"),
        ('{"0": ["*a\\u0000.png"]}', "must be a relative path inside"),
        ('{"3": ["*a.png"]}', "no category 4 in the annotations"),
        ('{"0": ["a.png"]}', r"'a.png' is neither '\*file' nor 'image\|mask'"),
        ('{"0": ["*../a.png"]}', "must be a relative path inside"),
        ('{"0": ["*/etc/a.png"]}', "is outside of .*`image_root`"),
        ('{"0": ["a.png|../m.png"]}', "must be a relative path inside"),
    ],
)
def test_a_bad_x_paste_index_is_refused(tmp_path, content, message):
    (tmp_path / "pool.json").write_text(content)
    with pytest.raises(PoolFormatError, match=message):
        open_xpaste_pool(tmp_path / "pool.json", CATEGORIES)


def test_an_x_paste_index_without_instances_is_empty(tmp_path):
    (tmp_path / "pool.json").write_text('{"0": [], "7": []}')
    with pytest.raises(EmptyPoolError, match="lists no instance"):
        open_xpaste_pool(tmp_path / "pool.json", CATEGORIES)


def test_a_pool_in_memory_has_no_x_paste_form(pool, tmp_path):
    with pytest.raises(ValueError, match="instance 'memory-0' has no file"):
        write_xpaste_json(pool, tmp_path / "pool.json")


def test_the_category_0_has_no_x_paste_form(write_pool, tmp_path):
    pool = InstancePool.open(write_pool([{"category_id": 0}]))
    with pytest.raises(ValueError, match="no class index for category 0"):
        write_xpaste_json(pool, tmp_path / "pool.json")


def annotated(root: Path) -> dict:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / "p.png")
    mask = np.zeros((30, 40), dtype=bool)
    mask[5:20, 10:30] = True
    mask[5, 10] = False
    entry = {"image_id": 5, "bbox": [10, 5, 20, 15], "segmentation": encode_mask(mask)}
    return {
        "images": [{"id": 5, "width": 40, "height": 30, "file_name": "p.png"}],
        "annotations": [
            {"id": 9, "category_id": 2, **entry},
            {"id": 4, "category_id": 2, **entry},
            {"id": 6, "category_id": 1, **entry},
            {"id": 7, "category_id": 1, **entry, "area": 20},
            {"id": 8, "category_id": 1, **entry, "iscrowd": 1},
        ],
        "categories": CATEGORIES,
    }


def test_annotated_objects_are_a_pool(tmp_path):
    pool = lvis_pool(annotated(tmp_path), tmp_path)
    assert listing(pool) == [("annotation-6", 1), ("annotation-4", 2), ("annotation-9", 2)]
    assert pool.category_names == {1: "apple", 2: "ball"}
    rgba = pool.read(1).rgba
    photo = np.asarray(Image.open(tmp_path / "p.png"))
    np.testing.assert_array_equal(rgba[..., :3], photo[5:20, 10:30])
    assert rgba[0, 0, 3] == 0
    assert rgba[..., 3].sum(dtype=int) == 255 * 299
    with pytest.raises(EmptyPoolError, match="at least 1000 px"):
        lvis_pool(annotated(tmp_path), tmp_path, min_area_px=1000)
    with pytest.raises(AnnotationError, match="no LVIS annotations"):
        lvis_pool({}, tmp_path)


def test_a_missing_photograph_is_a_corrupt_instance(tmp_path):
    pool = lvis_pool(annotated(tmp_path), tmp_path)
    (tmp_path / "p.png").unlink()
    with pytest.raises(CorruptInstanceError, match="image 5 is not at") as caught:
        pool.read(0)
    assert caught.value.instance_id == "annotation-6"
