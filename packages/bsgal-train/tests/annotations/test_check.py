from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bsgal_train.annotations import LvisAnnotations, LvisCategory
from bsgal_train.annotations.check import DataReport, check_data
from bsgal_train.annotations.findings import _count_findings

Document = dict[str, Any]


def make_document(names: dict[int, str], file_names: list[str]) -> Document:
    """One object per image, categories in turn."""
    ids = sorted(names)
    return {
        "info": {},
        "images": [
            {
                "id": i,
                "file_name": name,
                "height": 8,
                "width": 10,
                "neg_category_ids": [c for c in ids if c != ids[i % len(ids)]],
                "not_exhaustive_category_ids": [],
            }
            for i, name in enumerate(file_names)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": ids[i % len(ids)],
                "bbox": [1, 1, 4, 4],
                "area": 16,
                "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]],
            }
            for i in range(len(file_names))
        ],
        "categories": [{"id": i, "name": names[i], "frequency": "r"} for i in ids],
    }


@pytest.fixture
def training() -> Document:
    return make_document({1: "cat", 2: "owl"}, ["0.png", "1.png", "2.png"])


@pytest.fixture
def validation() -> Document:
    return make_document({1: "cat", 2: "owl"}, ["3.png", "4.png"])


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., DataReport]:
    for i in range(5):
        Image.fromarray(np.zeros((8, 10, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")

    def run(training: Document, validation: Document | None = None, **options: Any) -> DataReport:
        (tmp_path / "train.json").write_text(json.dumps(training))
        if validation is not None:
            (tmp_path / "val.json").write_text(json.dumps(validation))
            options["val_json"] = tmp_path / "val.json"
        return check_data(tmp_path / "train.json", tmp_path, **options)

    return run


def texts(report: DataReport, severity: str) -> list[str]:
    return [finding.text for finding in report.findings if finding.severity == severity]


def test_good_data_has_neither_errors_nor_warnings(check, training, validation):
    report = check(training, validation, read_images=True)
    assert report.is_usable
    assert texts(report, "error") == texts(report, "warning") == []
    assert "3 images (0 without objects), 3 instances, 2 categories (2 rare" in str(report)
    assert str(report).endswith("errors: 0, warnings: 0")


def test_every_malformed_entry_is_listed(check, training):
    training["annotations"][0]["category_id"] = 99
    training["annotations"][1]["bbox"] = []
    training["images"][2]["height"] = -1
    report = check(training)
    assert not report.is_usable
    found = "\n".join(texts(report, "error"))
    assert "annotation 0 has category 99" in found
    assert "annotation 1: bbox must be" in found
    assert "image 2 has height -1" in found


def test_a_long_list_of_malformed_entries_is_cut(check):
    training = make_document({1: "cat"}, ["0.png"] * 50)
    for annotation in training["annotations"]:
        annotation["category_id"] = 99
    errors = texts(check(training), "error")
    assert len(errors) == 21
    assert "and more" in errors[-1]


def test_missing_files_are_reported(check, training, validation, tmp_path):
    (tmp_path / "1.png").unlink()
    validation["images"][0]["file_name"] = "absent.png"
    errors = texts(check(training, validation), "error")
    assert "1 of 3 images are not on disk" in errors[0]
    assert "absent.png" in errors[1]
    report = check_data(tmp_path / "absent.json", tmp_path)
    assert "no annotation file" in texts(report, "error")[0]


def test_broken_images_are_found_by_reading_them(check, training, tmp_path):
    (tmp_path / "1.png").write_bytes(b"broken")
    assert check(training).is_usable
    steps: list[tuple[int, int]] = []
    report = check(training, read_images=True, progress=lambda *step: steps.append(step))
    (error,) = texts(report, "error")
    assert "1.png cannot be read" in error
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_contradicting_federated_fields_are_errors(check, training):
    training["images"][0]["neg_category_ids"] = [1]
    training["images"][1]["not_exhaustive_category_ids"] = [77]
    errors = texts(check(training), "error")
    assert any("1 images (1) list unknown categories" in e for e in errors)
    assert any(
        "1 images (0) list a category in neg_category_ids that is annotated" in e for e in errors
    )


def test_empty_federated_fields_are_a_warning(check, training):
    for image in training["images"]:
        image["neg_category_ids"] = []
    assert any("no image lists absent categories" in w for w in texts(check(training), "warning"))


def test_suspicious_boxes_are_warnings(check, training):
    training["annotations"][0]["bbox"] = [1, 1, 0, 4]
    training["annotations"][1]["bbox"] = [8, 1, 5, 4]
    warnings = texts(check(training), "warning")
    assert any("1 annotations (0) with a box without area" in w for w in warnings)
    assert any("1 annotations (1) with a box that leaves its image" in w for w in warnings)


def test_stated_counts_that_are_wrong_are_a_warning_for_training_only(check, training, validation):
    training["categories"][0]["image_count"] = 2
    validation["categories"][0]["image_count"] = 2
    assert texts(check(training, validation), "warning") == []
    training["categories"][1]["image_count"] = 5
    (warning,) = texts(check(training, validation), "warning")
    assert "1 categories (owl) with an image_count" in warning


def test_frequency_groups_against_the_stated_limits_are_a_warning(check, training):
    training["info"] = {"frequency_limits": {"r": [1, 1], "c": [2, 9], "f": [10, None]}}
    (warning,) = texts(check(training), "warning")
    assert "1 categories (cat) in another frequency group" in warning


def test_splits_with_other_categories_are_an_error(check, training):
    other = make_document({1: "cat", 3: "owl"}, ["3.png", "4.png"])
    (error,) = texts(check(training, other), "error")
    assert "define different categories: 2 ids (2, 3)" in error
    renamed = make_document({1: "cat", 2: "eagle"}, ["3.png", "4.png"])
    (error,) = texts(check(training, renamed), "error")
    assert "'owl' and 'eagle'" in error


def test_splits_with_other_frequency_groups_are_a_warning(check, training, validation):
    validation["categories"][1]["frequency"] = "f"
    (warning,) = texts(check(training, validation), "warning")
    assert "1 category ids (2) into different frequency groups" in warning


def test_images_shared_by_the_splits_are_a_warning(check, training, validation):
    validation["images"][0]["file_name"] = "2.png"
    (warning,) = texts(check(training, validation), "warning")
    assert "1 images" in warning
    assert "2.png" in warning


def test_a_category_without_instances_is_a_note(check, training):
    training["categories"].append({"id": 9, "name": "yak", "frequency": "r"})
    report = check(training)
    assert report.is_usable
    assert any("1 categories (yak) without an instance" in n for n in texts(report, "note"))


def test_lvis_v1_train_must_have_its_group_sizes():
    def found(groups: str) -> list[str]:
        annotations = LvisAnnotations(
            path=Path("lvis_v1_train.json"),
            categories=tuple(
                LvisCategory(i + 1, i, str(i), (), group, 1, 1) for i, group in enumerate(groups)
            ),
            images=range(100_170),
            class_index_of={},
            image_indices_of_class=(),
            frequency_limits=None,
        )
        categories = [{"id": category.category_id} for category in annotations.categories]
        return [f.text for f in _count_findings({"categories": categories}, annotations)]

    assert found("r" * 337 + "c" * 461 + "f" * 405) == []
    (error,) = found("r" * 317 + "c" * 481 + "f" * 405)
    assert "looks like LVIS v1 train" in error


def write_pool(root: Path, names: list[str]) -> Path:
    (root / "instances").mkdir(parents=True)
    meta = {"schema": "bsgal.instance_pool/1", "config": {}, "versions": {}, "source": {}}
    (root / "meta.json").write_text(json.dumps(meta))
    rows = []
    for i, name in enumerate(names):
        Image.fromarray(np.full((4, 4, 4), 255, dtype=np.uint8)).save(root / f"instances/{i}.png")
        rows.append(
            {
                "instance_id": str(i),
                "category_id": 100 + i,
                "category_name": name,
                "file": f"instances/{i}.png",
                "label_mask_threshold": 128,
                "status": "kept",
                "sha256": None,
            }
        )
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_the_pool_is_matched_and_its_reach_told(check, training, tmp_path):
    report = check(training, pool=write_pool(tmp_path / "pool", ["Owl", "unicorn"]))
    assert any("1 instances for 1 of 2 rare" in note for note in texts(report, "note"))
    (warning,) = texts(report, "warning")
    assert "1 categories (unicorn) of the pool have no counterpart" in warning


def test_a_pool_without_a_common_category_is_an_error(check, training, tmp_path):
    report = check(training, pool=write_pool(tmp_path / "pool", ["unicorn"]))
    (error,) = texts(report, "error")
    assert "no category in common" in error
    (error,) = texts(check(training, pool=tmp_path / "absent"), "error")
    assert str(tmp_path / "absent") in error


def test_detectron2_is_not_needed():
    code = (
        "import sys; from bsgal_train.annotations.check import check_data; "
        "print('detectron2' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
