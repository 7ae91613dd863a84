from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.annotations import FrequencyLimits, LvisAnnotations
from bsgal_train.errors import (
    AnnotationError,
    AnnotationFormatError,
    EmptyAnnotationsError,
    MissingImagesError,
    UnknownCategoryError,
)

SHARED_DATA = Path(__file__).parents[5] / "shared" / "data"
SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


def annotation(annotation_id: int, image_id: int, category_id: int) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [1.0, 1.0, 4.0, 4.0],
        "area": 16.0,
        "segmentation": SQUARE,
    }


def image(image_id: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": f"{image_id}.png",
        "height": 8,
        "width": 10,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        **fields,
    }


DOCUMENT: dict[str, Any] = {
    "info": {},
    "images": [image(7), image(3), image(5)],
    "annotations": [annotation(1, 7, 20), annotation(2, 7, 20), annotation(3, 3, 4)],
    "categories": [
        {"id": 20, "name": "cup", "synonyms": ["mug"], "frequency": "c", "image_count": 99},
        {"id": 4, "name": "cat", "frequency": "r"},
        {"id": 30, "name": "owl", "frequency": "f"},
    ],
}


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[dict[str, Any]], LvisAnnotations]:
    """Write a document and empty image files, then load it."""

    def load_document(document: dict[str, Any]) -> LvisAnnotations:
        path = tmp_path / "lvis.json"
        path.write_text(json.dumps(document))
        for entry in DOCUMENT["images"]:
            (tmp_path / entry["file_name"]).touch()
        return LvisAnnotations.load(path, tmp_path)

    return load_document


def test_categories_are_sorted_by_id_and_counted(load, document):
    categories = load(document).categories
    assert [c.category_id for c in categories] == [4, 20, 30]
    assert [c.class_index for c in categories] == [0, 1, 2]
    assert [c.image_count for c in categories] == [1, 1, 0]
    assert [c.instance_count for c in categories] == [1, 2, 0]
    assert categories[1].synonyms == ("mug",)


def test_images_keep_the_order_of_the_file_and_their_instances(load, document, tmp_path):
    annotations = load(document)
    assert [record.image_id for record in annotations.images] == [7, 3, 5]
    first = annotations.images[0]
    assert first.path == tmp_path / "7.png"
    assert (first.height, first.width) == (8, 10)
    assert [i.class_index for i in first.instances] == [1, 1]
    assert first.instances[0].bbox_xywh == (1.0, 1.0, 4.0, 4.0)
    assert first.instances[0].segmentation == SQUARE
    assert annotations.images[2].instances == ()


def test_images_of_a_class_are_listed_once_each(load, document):
    annotations = load(document)
    assert [found.tolist() for found in annotations.image_indices_of_class] == [[1], [0], []]
    assert annotations.class_index_of == {4: 0, 20: 1, 30: 2}


def test_frequency_groups_come_from_the_file(load, document):
    annotations = load(document)
    assert [c.frequency for c in annotations.categories] == ["r", "c", "f"]
    assert annotations.frequency_limits is None


def test_frequency_groups_are_computed_where_the_file_has_none(load, document):
    for category in document["categories"]:
        category.pop("frequency")
    annotations = load(document)
    assert annotations.frequency_limits == FrequencyLimits(10, 100)
    assert [c.frequency for c in annotations.categories] == ["r", "r", "r"]
    document["info"] = {"frequency_limits": {"r": [1, 0], "c": [1, 1], "f": [2, None]}}
    annotations = load(document)
    assert annotations.frequency_limits == FrequencyLimits(0, 1)
    assert [c.frequency for c in annotations.categories] == ["c", "c", "r"]


@pytest.mark.parametrize(
    ("image_count", "group"), [(1, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")]
)
def test_default_limits_are_those_of_lvis(image_count, group):
    assert FrequencyLimits().group_of(image_count) == group


@pytest.mark.parametrize(
    "stated", [[10, 100], {"r": [1, float("inf")], "c": [2, 3]}, {"r": [1, 2], "c": [3]}]
)
def test_malformed_frequency_limits_are_refused(load, document, stated):
    document["info"] = {"frequency_limits": stated}
    with pytest.raises(AnnotationFormatError, match=r"info\.frequency_limits must look like"):
        load(document)


def test_images_without_file_name_are_found_by_the_end_of_their_address(tmp_path, document):
    document["images"] = [
        image(7, file_name=None, coco_url="http://host/train2017/7.png"),
        image(3, file_name=None, coco_url="http://host/train2017/3.png"),
        image(5),
    ]
    (tmp_path / "train2017").mkdir()
    for name in ("train2017/7.png", "3.png", "5.png"):
        (tmp_path / name).touch()
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document))
    found = LvisAnnotations.load(path, tmp_path).images
    assert [record.path.relative_to(tmp_path).as_posix() for record in found] == [
        "train2017/7.png",
        "3.png",
        "5.png",
    ]


def test_annotations_survive_pickling(load, document):
    annotations = load(document)
    again = pickle.loads(pickle.dumps(annotations))
    assert again.categories == annotations.categories
    assert list(again.images) == list(annotations.images)


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"no annotation file at .*absent\.json"):
        LvisAnnotations.load(tmp_path / "absent.json", tmp_path)


def test_a_folder_in_place_of_the_annotation_file_is_named(tmp_path):
    with pytest.raises(AnnotationError, match="cannot be read"):
        LvisAnnotations.load(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"images": [], "images": []}', r"lvis\.json has the key 'images' twice in one object"),
        ('{"images": [{"id": 1, "height": 2, "id": 3}]}', "has the key 'id' twice in one object"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text, message):
    path = tmp_path / "lvis.json"
    path.write_text(text)
    with pytest.raises(AnnotationFormatError, match=message):
        LvisAnnotations.load(path, tmp_path)


def test_missing_images_are_counted_and_listed(tmp_path, document):
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document))
    (tmp_path / "3.png").touch()
    with pytest.raises(MissingImagesError, match="2 of 3 images are not on disk") as caught:
        LvisAnnotations.load(path, tmp_path)
    assert caught.value.paths == (str(tmp_path / "7.png"), str(tmp_path / "5.png"))
    assert str(tmp_path / "7.png") in str(caught.value)
    with pytest.raises(MissingImagesError, match="check image_root"):
        LvisAnnotations.load(path, tmp_path / "elsewhere")


def test_a_long_list_of_missing_images_is_cut(tmp_path, document):
    document["images"] = [image(i) for i in range(1, 40)]
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document))
    with pytest.raises(MissingImagesError, match="and 29 more"):
        LvisAnnotations.load(path, tmp_path)


def test_an_annotation_with_an_unknown_category_is_named(load, document):
    document["annotations"].append(annotation(9, 5, 99))
    with pytest.raises(UnknownCategoryError, match="annotation 9 has category 99"):
        load(document)


@pytest.mark.parametrize("part", ["images", "annotations"])
def test_a_file_with_nothing_in_it_is_refused(load, document, part):
    document["annotations"] = []
    document[part] = []
    with pytest.raises(EmptyAnnotationsError, match="both must be more than 0"):
        load(document)


def test_lvis_v05_is_recognised(load, document):
    document["images"] = [image(7, file_name="COCO_val2014_000000000007.jpg")]
    document["categories"] = [{"id": i, "name": str(i)} for i in range(1, 1231)]
    with pytest.raises(AnnotationFormatError, match=r"LVIS v0\.5"):
        load(document)


def test_the_official_sample_of_v05_is_recognised(tmp_path):
    sample = SHARED_DATA / "lvis_val_100.json"
    if not sample.exists():
        pytest.skip(f"needs {sample}")
    with pytest.raises(AnnotationFormatError, match=r"LVIS v0\.5"):
        LvisAnnotations.load(sample, tmp_path)


@pytest.mark.parametrize("field", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_plain_coco_files_are_recognised(load, document, field):
    del document["images"][1][field]
    with pytest.raises(AnnotationFormatError, match=f"1 of 3 images have no list `{field}`.*COCO"):
        load(document)


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Give a function that sets the entry at `part/position/field` of a document."""

    def change(document: dict[str, Any]) -> None:
        *parents, last = (int(p) if p.isdigit() else p for p in path.split("/"))
        target: Any = document
        for parent in parents:
            target = target[parent]
        target[last] = value

    return change


def polygon_to(x: float) -> Callable[[dict[str, Any]], None]:
    return edit("annotations/0/segmentation", [[1.0, 1.0, x, 1.0, 5.0, 5.0, 1.0, 5.0]])


def run_lengths(counts: Any) -> Callable[[dict[str, Any]], None]:
    return edit("annotations/0/segmentation", {"size": [8, 10], "counts": counts})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("images", {}), "no list of objects `images`"),
        (edit("annotations/0", 3), "no list of objects `annotations`"),
        (edit("categories", []), "has no categories"),
        (edit("categories/0/name", ""), "category 20 has no `name`"),
        (edit("categories/0/frequency", "x"), "category 20 has frequency 'x'"),
        (edit("categories/0/id", 4), "id 4 occurs twice in categories"),
        (edit("images/0/id", 3), "id 3 occurs twice in images"),
        (edit("images/0/id", "7"), r"images\[0\] has no `id`, an integer of at least 0: '7'"),
        (edit("images/0/width", 0), "image 7 has width 0"),
        (edit("images/0/file_name", ""), "image 7 has neither"),
        (edit("annotations/0/image_id", 99), "annotation 1 is of image 99"),
        (edit("annotations/0/iscrowd", 1), "annotation 1 is a crowd region"),
        (edit("annotations/0/bbox", [1, 2, 3]), "annotation 1: bbox must be .* four numbers"),
        (edit("annotations/0/bbox", [1, 2, float("nan"), 4]), "annotation 1: bbox must be"),
        (
            edit("annotations/0/segmentation", []),
            "annotation 1: malformed segmentation: it has no polygon",
        ),
        (edit("annotations/0/segmentation", [[1, 2, 3, 4]]), "fewer than three points"),
        (edit("annotations/0/segmentation", [[1, 2, 3, 4, 5, "6"]]), "a list of numbers"),
        (edit("annotations/0/segmentation", {"size": [8, 10]}), "`counts` of run lengths must be"),
        (
            edit("annotations/0/segmentation", {"size": [10, 8], "counts": "x"}),
            r"mask has size \(10, 8\), the image \(8, 10\)",
        ),
        # pycocotools ends the process, takes all memory, or returns pixels that nobody wrote.
        (polygon_to(1e30), r"annotation 1: the coordinates .* within -10 to 20 px"),
        (polygon_to(1e9), r"annotation 1: the coordinates .* within -10 to 20 px"),
        (polygon_to(float("nan")), r"annotation 1: the coordinates .* finite"),
        (run_lengths(""), "annotation 1: .* run lengths are empty, cut off"),
        (run_lengths("0"), "annotation 1: the run lengths add up to 0 px"),
        (run_lengths([3, 4]), "annotation 1: the run lengths add up to 7 px"),
        (run_lengths([-3, 83]), "annotation 1: .* the shortest is -3"),
        (run_lengths(["a"]), "annotation 1: .* a list of integers"),
        (edit("annotations/0/bbox", [1e30, 1, 4, 4]), "annotation 1: bbox must be .* within"),
        (edit("annotations/0/bbox", [1, 1, -4, 4]), "annotation 1: bbox must be .* at least 0"),
        (edit("annotations/0/area", "16"), "annotation 1 has area '16'"),
        (edit("annotations/0/area", float("nan")), "annotation 1 has area nan"),
        (edit("annotations/0/image_id", [7]), r"annotation 1 is of image \[7\]"),
        (edit("annotations/0/id", True), r"annotations\[0\] has no `id`"),
        (edit("annotations/0/id", -1), r"annotations\[0\] has no `id`"),
        (edit("images/0/id", 2**70), r"images\[0\] has no `id`"),
        (edit("images/0/width", 10**9), "image 7 has 1000000000 x 8 px, more than"),
        (edit("images/0/file_name", 5), "image 7 has the file name 5"),
        (edit("images/0/file_name", "a\0.png"), "image 7 has the file name"),
        (edit("images/0/coco_url", 5), "image 7 has the file name 5"),
        (edit("images/0/neg_category_ids", [[4]]), "image 7 has neg_category_ids"),
        (edit("categories/0/name", "\ud800"), "category 20 has no `name`"),
        (edit("categories/0/synonyms", "mug"), "category 20 has synonyms 'mug'"),
        (edit("info", [3]), r"`info` must be an object, it is \[3\]"),
    ],
)
def test_a_malformed_entry_is_named(load, document, change, message):
    change(document)
    with pytest.raises(AnnotationFormatError, match=message):
        load(document)


def test_ids_count_from_zero(load, document):
    document["images"][0]["id"] = 0
    for entry in document["annotations"][:2]:
        entry.update(image_id=0, category_id=0, id=entry["id"] - 1)
    document["categories"][0]["id"] = 0

    annotations = load(document)

    assert annotations.class_index_of == {0: 0, 4: 1, 30: 2}
    assert annotations.categories[0].image_count == 1
    first = annotations.images[0]
    assert first.image_id == 0
    assert [(i.annotation_id, i.class_index) for i in first.instances] == [(0, 0), (1, 0)]


def test_a_frequency_for_some_categories_only_is_refused(load, document):
    del document["categories"][0]["frequency"]
    with pytest.raises(AnnotationFormatError, match="2 of 3 categories have a `frequency`"):
        load(document)


def test_real_photographs_have_the_counts_their_file_states():
    root = SHARED_DATA / "coco-mini"
    if not root.exists():
        pytest.skip(f"needs the photographs in {root}")
    annotations = LvisAnnotations.load(root / "lvis_train.json", root / "images" / "train")
    stated = {
        c["id"]: (c["image_count"], c["instance_count"], c["frequency"])
        for c in json.loads((root / "lvis_train.json").read_text())["categories"]
    }
    assert stated == {
        c.category_id: (c.image_count, c.instance_count, c.frequency)
        for c in annotations.categories
    }
    groups = [c.frequency for c in annotations.categories]
    assert [groups.count(group) for group in "rcf"] == [26, 31, 12]
