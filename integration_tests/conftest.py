from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bsgal_generate import cli as generate_cli
from bsgal_mask import cli as mask_cli
from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.dataset import BuiltinDataset, ensure_builtin_dataset

# Benchmarks import each other as scripts do.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

COCO_MINI = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-mini"


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    if not COCO_MINI.is_dir():
        pytest.skip("the photographs of coco-mini are not at ../shared/data/coco-mini")
    return COCO_MINI


@pytest.fixture(scope="session")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> BuiltinDataset:
    return ensure_builtin_dataset(tmp_path_factory.mktemp("builtin") / "dataset")


@pytest.fixture(scope="session")
def categories_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category list in LVIS layout: the built-in categories that coco-mini shows, too."""
    chosen = {"broccoli", "carrot", "pizza", "umbrella", "elephant", "clock", "cake"}
    path = tmp_path_factory.mktemp("categories") / "categories.json"
    entries = [
        {
            "id": category.category_id,
            "name": category.name,
            "synonyms": list(category.synonyms),
            "def": category.definition,
        }
        for category in BUILTIN_CATEGORIES
        if category.name in chosen
    ]
    path.write_text(json.dumps({"categories": entries}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def image_set(categories_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of those categories, drawn by the pipeline that ships, through its command line."""
    folder = tmp_path_factory.mktemp("images") / "set"
    options = ["--images-per-category", "3", "--num-inference-steps", "8", "--batch-size", "8"]
    command = ["run", "--categories", str(categories_json), "--model", "tiny", *options]
    assert generate_cli.main([*command, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def pool(image_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The instances cut out of those images, through the command line."""
    folder = tmp_path_factory.mktemp("pool") / "pool"
    assert mask_cli.main(["run", str(image_set), "--out", str(folder), "--method", "border"]) == 0
    return folder
