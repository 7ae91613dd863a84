"""The detector that is shipped as package data."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.detector import build_detector, load_weights
from bsgal_train.recipe import DetectorConfig
from bsgal_train.recipe.library import load_recipe

FOLDER = Path(str(files("bsgal_train") / "baseline"))
NAMES = [c.name for c in sorted(BUILTIN_CATEGORIES, key=lambda c: c.category_id)]


def test_it_takes_at_most_twelve_megabytes() -> None:
    assert 1e6 < (FOLDER / "detector.safetensors").stat().st_size < 12e6


def test_it_knows_the_built_in_categories() -> None:
    assert json.loads((FOLDER / "detector.json").read_text())["category_names"] == NAMES


def test_it_fits_the_detector_of_the_recipes() -> None:
    for recipe in ("builtin_baseline", "builtin_continue"):
        detector = build_detector(load_recipe(recipe).detector, len(NAMES))

        assert load_weights(detector, "baseline", NAMES) == ()


def test_it_is_described_by_the_default_settings() -> None:
    described = json.loads((FOLDER / "detector.json").read_text())["detector"]

    assert described["backbone_channels"] == list(DetectorConfig().backbone_channels)
    assert described["precision"] == "fp32"
