from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_paste import AnnotationError, _lvis
from bsgal_paste._lvis import (
    decode_segmentation,
    encode_mask,
    image_path,
    load_lvis,
    read_annotated_image,
)

LVIS = {
    "images": [{"id": 3, "width": 20, "height": 10, "file_name": "a.png"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 3,
            "category_id": 2,
            "bbox": [2, 1, 6, 4],
            "segmentation": [[2, 1, 8, 1, 8, 5, 2, 5]],
        }
    ],
    "categories": [{"id": 2, "name": "ball"}],
}


def changed(path: list, value: object) -> dict:
    content = copy.deepcopy(LVIS)
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return content


def nested(depth: int) -> list | dict:
    value: list | dict = []
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["images", 0, "width"], 0, "image 3 needs id, width and height"),
        (["annotations", 0, "image_id"], 4, "annotation 1: unknown image 4"),
        (["annotations", 0, "category_id"], 9, "annotation 1: unknown category 9"),
        (["annotations", 0, "bbox"], [1, 2, 3], "annotation 1: bbox must be"),
        (["annotations", 0, "bbox"], [1, 2, -3, 1], "annotation 1: bbox must be"),
        (["annotations", 0, "bbox"], [1, 2, float("nan"), 1], "annotation 1: bbox must be"),
        (["categories"], [{"id": 2}], "category 2 needs id and name"),
        (["categories"], LVIS["categories"] * 2, "every category needs an id of its own"),
        (["images", 0, "width"], 10**9, "image 3 has 1000000000 x 10 px, over the limit"),
        (["images", 0, "width"], -20, "image 3 needs id, width and height"),
        (["images", 0, "width"], 20.0, "image 3 needs id, width and height"),
        (["images", 0, "width"], "20", "image 3 needs id, width and height"),
        (["images", 0, "height"], True, "image 3 needs id, width and height"),
        (["images", 0, "height"], None, "image 3 needs id, width and height"),
        (["images", 0, "id"], "3", r"images\[0\] has '3'"),
        (["images", 0, "id"], -3, r"images\[0\] has -3"),
        (["images", 0, "id"], 2**70, r"images\[0\] has 1180591620717411303424"),
        (["images", 0, "id"], True, r"images\[0\] has True"),
        (["images", 0, "id"], [3], r"images\[0\] has \[3\]"),
        (["images", 0, "id"], 3.0, r"images\[0\] has 3.0"),
        (["images", 0, "file_name"], ["a.png"], "image 3: `file_name` must be a text"),
        (["images", 0, "file_name"], 0, "image 3: `file_name` must be a text"),
        (["images", 0, "file_name"], "a\0.png", "image 3: `file_name` must be a text"),
        (["images", 0, "file_name"], "\ud800.png", "image 3: `file_name` must be a text"),
        (["images", 0, "coco_url"], {}, "image 3: `coco_url` must be a text"),
        (["images", 0, "neg_category_ids"], [9], "image 3: `neg_category_ids` must be a list"),
        (["images", 0, "neg_category_ids"], None, "image 3: `neg_category_ids` must be a list"),
        (["images", 0, "not_exhaustive_category_ids"], ["2"], "image 3: `not_exhaustive_category"),
        (["images", 0], 3, "`images` must be a list of objects"),
        (["images"], {"3": {}}, "`images` must be a list of objects"),
        (["images", 0, "x"], nested(33), "image 3: `x` is nested more than 32 deep"),
        (["annotations", 0, "x"], nested(900), "annotation 1: `x` is nested more than 32 deep"),
        (["annotations", 0, "bbox"], nested(900), "annotation 1: bbox must be"),
        (["annotations", 0, "segmentation"], nested(900), "annotation 1: malformed segmentation"),
        (["annotations"], None, "`annotations` must be a list of objects"),
        (["annotations", 0, "image_id"], "3", "annotation 1: unknown image '3'"),
        (["annotations", 0, "image_id"], [3], r"annotation 1: unknown image \[3\]"),
        (["annotations", 0, "category_id"], 2.0, "annotation 1: unknown category 2.0"),
        (["annotations", 0, "category_id"], {}, "annotation 1: unknown category {}"),
        (["annotations", 0, "area"], float("nan"), "annotation 1: `area` must be a number"),
        (["annotations", 0, "area"], "24", "annotation 1: `area` must be a number"),
        (["annotations", 0, "area"], -1, "annotation 1: `area` must be a number"),
        (["annotations", 0, "area"], 1e30, "annotation 1: `area` must be a number"),
        (["annotations", 0, "iscrowd"], 2, "annotation 1: `iscrowd` must be 0 or 1"),
        (["annotations", 0, "iscrowd"], True, "annotation 1: `iscrowd` must be 0 or 1"),
        (["annotations", 0, "iscrowd"], "1", "annotation 1: `iscrowd` must be 0 or 1"),
        (["annotations", 0, "segmentation"], "", "annotation 1: malformed segmentation"),
        (["annotations", 0, "segmentation"], {}, "annotation 1: malformed segmentation"),
        (["categories", 0, "name"], 5, "category 2 needs id and name"),
        (["categories", 0, "name"], "", "category 2 needs id and name"),
        (["categories", 0, "synonyms"], "ball", "category 2: `synonyms` must be a list"),
        (["categories", 0, "frequency"], "rare", "category 2: `frequency` must be 'r', 'c' or 'f'"),
        (["categories", 0, "frequency"], [], "category 2: `frequency` must be 'r', 'c' or 'f'"),
        (["categories", 0, "image_count"], "9", "category 2: `image_count` must be an integer"),
        (["categories", 0, "instance_count"], -9, "category 2: `instance_count` must be an int"),
        (["info"], [], "`info` must be an object"),
        (["licenses"], 1, "`licenses` must be a list"),
        (["licenses"], "CC0", "`licenses` must be a list"),
        (
            ["categories"],
            [{"id": 2, "name": "ball", "frequency": "r"}, {"id": 5, "name": "bat"}],
            "1 of 2 categories have a `frequency`; all or none must",
        ),
    ],
)
def test_a_bad_entry_is_named(path, value, message):
    with pytest.raises(AnnotationError, match=message):
        load_lvis(changed(path, value))


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no annotation file .*a\.json"):
        load_lvis(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(AnnotationError, match="no LVIS annotations, the keys"):
        load_lvis(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(AnnotationError, match=r"a\.json is not valid JSON"):
        load_lvis(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": 1' + "0" * 5000 + "}", "is not valid JSON"),
        ('{"images": [], "images": []}', "the key 'images' is there twice in one object"),
        ('{"images": [{"id": 1, "id": 1}]}', "the key 'id' is there twice in one object"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark; save it without one"),
        (b"", "is not valid JSON"),
        ("7", "no LVIS annotations, the keys"),
        ("null", "no LVIS annotations, the keys"),
    ],
)
def test_what_json_cannot_be_used_is_said(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError, match=rf"a\.json.*{message}"):
        load_lvis(path)


def test_content_that_is_no_json_is_named_before_it_is_written():
    content = changed(["info"], {"share": float("nan")})
    with pytest.raises(AnnotationError, match="the annotations is not valid JSON: Out of range"):
        load_lvis(content).sha256()


def test_content_nested_too_deeply_to_be_hashed_is_named():
    with pytest.raises(AnnotationError, match="the annotations is not valid JSON"):
        load_lvis(changed(["info"], nested(100_000))).sha256()


def test_files_of_boxes_may_say_that_there_is_no_mask():
    assert not load_lvis(LVIS).boxes_only
    for nothing in (None, []):
        assert load_lvis(changed(["annotations", 0, "segmentation"], nothing)).boxes_only


def test_masks_for_some_annotations_only_are_refused():
    content = changed(["annotations", 0, "segmentation"], None)
    content["annotations"].append({**LVIS["annotations"][0], "id": 2})
    with pytest.raises(AnnotationError, match="annotation 1 has no segmentation, 1 of 2 have none"):
        _ = load_lvis(content).boxes_only


def test_polygons_and_both_run_length_forms_give_the_same_mask():
    polygon = LVIS["annotations"][0]
    mask = decode_segmentation(polygon, 10, 20)
    assert mask.sum() == 24
    compressed = encode_mask(mask)
    assert json.loads(json.dumps(compressed)) == compressed
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
    counts = np.diff(np.concatenate([[0], starts, [flat.size]])).tolist()
    for segmentation in (compressed, {"size": [10, 20], "counts": counts}):
        again = decode_segmentation({"id": 1, "segmentation": segmentation}, 10, 20)
        np.testing.assert_array_equal(again, mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2]], "fewer than three points"),
        ({"size": [4, 4], "counts": [16]}, r"the mask has size \(4, 4\), the image \(10, 20\)"),
        ({"size": [10, 20]}, "malformed segmentation"),
        (None, "malformed segmentation"),
        ([], "malformed segmentation: there is none"),
    ],
)
def test_a_bad_segmentation_is_named(segmentation, message):
    with pytest.raises(AnnotationError, match=f"annotation 7: .*{message}"):
        decode_segmentation({"id": 7, "segmentation": segmentation}, 10, 20)


def test_an_image_is_read_with_its_masks(tmp_path):
    Image.new("RGB", (20, 10), (1, 2, 3)).save(tmp_path / "a.png")
    empty = {**LVIS["annotations"][0], "segmentation": {"size": [10, 20], "counts": [200]}}
    annotations = [empty, LVIS["annotations"][0]]
    image, used = read_annotated_image(LVIS["images"][0], annotations, tmp_path)
    assert used == [1]
    np.testing.assert_array_equal(image.boxes_xyxy, [[2, 1, 8, 5]])
    assert image.category_ids.tolist() == [2]
    assert image.image[0, 0].tolist() == [1, 2, 3]


def test_an_image_of_another_size_or_damaged_is_named(tmp_path):
    Image.new("RGB", (20, 11)).save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match="20 x 11 px, the annotations say 20 x 10"):
        read_annotated_image(LVIS["images"][0], [], tmp_path)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(AnnotationError, match="image 3: cannot decode"):
        read_annotated_image(LVIS["images"][0], [], tmp_path)


def test_an_image_is_found_by_the_end_of_its_url(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "7.jpg").touch()
    url = "http://images.cocodataset.org/val2017/7.jpg"
    assert image_path({"id": 7, "coco_url": url}, tmp_path) == tmp_path / "val2017" / "7.jpg"
    assert image_path({"id": 7, "coco_url": url}, tmp_path / "val2017").name == "7.jpg"


def test_an_image_that_is_missing_or_outside_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="image 7 is not at"):
        image_path({"id": 7, "file_name": "x.jpg"}, tmp_path)
    with pytest.raises(AnnotationError, match="leaves"):
        image_path({"id": 7, "file_name": "../x.jpg"}, tmp_path)
    with pytest.raises(AnnotationError, match=r"image 7: .* cannot be looked for: .*too long"):
        image_path({"id": 7, "file_name": "x" * 5000}, tmp_path)
    with pytest.raises(AnnotationError, match="neither `file_name` nor `coco_url`"):
        image_path({"id": 7}, Path(tmp_path))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32)],
)
def test_a_photograph_of_more_than_8_bits_is_refused(tmp_path, name, dtype):
    pixels = np.linspace(0, 65535, 200).reshape(10, 20).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(AnnotationError, match=r"image 3: .* has more than 8 bits per pixel"):
        read_annotated_image({**LVIS["images"][0], "file_name": name}, [], tmp_path)


def test_a_photograph_over_the_size_limit_is_refused_unread(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(_lvis, "MAX_PHOTO_PIXELS", 1199)
    monkeypatch.setattr(_lvis.ImageOps, "exif_transpose", None)
    image = {"id": 3, "width": 40, "height": 30, "file_name": "a.png"}
    with pytest.raises(
        AnnotationError, match=r"image 3: .* has 40 x 30 px, over the limit of 1199"
    ):
        read_annotated_image(image, [], tmp_path)
