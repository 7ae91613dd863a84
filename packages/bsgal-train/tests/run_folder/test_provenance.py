from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bsgal_train.annotations import LvisAnnotations, findings
from bsgal_train.annotations.derived import file_sha256
from bsgal_train.engine.run import train
from bsgal_train.errors import AnnotationFormatError
from bsgal_train.recipe import Recipe


def test_a_run_says_what_it_was_made_from(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    train(tiny_recipe.override("schedule.n_steps=1"), tmp_path)

    found = json.loads((tmp_path / "provenance.json").read_text())
    annotations = LvisAnnotations.load(tiny_data / "train.json", tiny_data)
    inputs = found["inputs"]
    assert inputs["training"]["sha256"] == file_sha256(tiny_data / "train.json")
    assert inputs["training"]["n_images"] == len(annotations.images)
    assert sum(inputs["training"]["categories_of_group"].values()) == len(annotations.categories)
    assert inputs["validation"]["sha256"] == file_sha256(tiny_data / "val.json")
    assert inputs["pool"]["manifest_sha256"] == file_sha256(tiny_data / "pool/manifest.jsonl")
    assert sum(inputs["pool"]["instances_of_category"].values()) == inputs["pool"]["n_instances"]
    assert {"python", "torch", "bsgal-train", "timm"} <= set(found["versions"])


def test_a_run_is_not_continued_on_other_data(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    path = tmp_path / "train.json"
    path.write_text((tiny_data / "train.json").read_text())
    recipe = tiny_recipe.override(f"data.train_json={path}", "schedule.n_steps=1", "data.val_json=")
    train(recipe, tmp_path / "run")
    document = json.loads(path.read_text())
    document["annotations"] = document["annotations"][1:]
    path.write_text(json.dumps(document))

    with pytest.raises(ValueError, match="a run on other data: training changed"):
        train(recipe, tmp_path / "run")


def test_lvis_v1_with_other_groups_is_not_trained_on(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "_N_CATEGORIES_V1", 3)
    monkeypatch.setattr(findings, "_MIN_TRAIN_IMAGES_V1", 1)

    with pytest.raises(AnnotationFormatError, match="'r': 337, 'c': 461, 'f': 405"):
        train(tiny_recipe, tmp_path)


def test_lvis_v1_with_its_own_groups_is(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = LvisAnnotations.load(tiny_data / "train.json", tiny_data)
    sizes: dict[str, int] = {}
    for category in annotations.categories:
        sizes[category.frequency] = sizes.get(category.frequency, 0) + 1
    monkeypatch.setattr(findings, "_N_CATEGORIES_V1", 3)
    monkeypatch.setattr(findings, "_MIN_TRAIN_IMAGES_V1", 1)
    monkeypatch.setattr(findings, "_GROUP_SIZES_V1", sizes)

    problem: Callable[[LvisAnnotations], str | None] = findings.lvis_v1_train_problem
    assert problem(annotations) is None
