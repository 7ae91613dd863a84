from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from bsgal_train.data import LabelledImage
from bsgal_train.detector import build_detector, training_losses
from bsgal_train.recipe import Recipe
from bsgal_train.recipe.library import load_recipe, recipe_names

BACKBONES = ("r50", "swinl")
ROWS = ("baseline", "xpaste", "bsgal_paper", "bsgal_instance")
N_CLASSES = 1203


@pytest.mark.parametrize(("backbone", "row"), [*itertools.product(BACKBONES, ROWS)])
def test_every_reported_row_has_a_recipe(backbone: str, row: str) -> None:
    recipe = load_recipe(f"lvis_{backbone}_{row}")

    modes = {"baseline": "none", "xpaste": "paste_all"}
    assert recipe.selection.mode == modes.get(row, row.removeprefix("bsgal_"))
    assert recipe.detector.architecture == "centernet2"
    assert recipe.detector.federated_classes == 50
    assert recipe.data.crop_px == {"r50": 640, "swinl": 896}[backbone]


def differing(one: Recipe, other: Recipe) -> set[str]:
    parts, others = one.to_dict(), other.to_dict()
    return {
        f"{part}.{name}"
        for part in parts
        for name in parts[part]
        if parts[part][name] != others[part][name]
    }


@pytest.mark.parametrize(
    ("row", "control"),
    [
        ("lvis_r50_xpaste", "lvis_r50_baseline"),
        ("lvis_r50_bsgal_paper", "lvis_r50_control"),
        ("lvis_r50_bsgal_instance", "lvis_r50_control"),
        ("lvis_swinl_xpaste", "lvis_swinl_baseline"),
        ("lvis_swinl_bsgal_paper", "lvis_swinl_baseline"),
        ("lvis_swinl_bsgal_instance", "lvis_swinl_baseline"),
    ],
)
def test_a_row_differs_from_its_control_in_pasting_and_selection_only(
    row: str, control: str
) -> None:
    found = differing(load_recipe(row), load_recipe(control))

    assert {key.partition(".")[0] for key in found} == {"paste", "selection"}


def test_helpers_are_no_recipes() -> None:
    assert not [name for name in recipe_names() if name.startswith("_")]
    with pytest.raises(ValueError, match="no recipe `lvis`"):
        load_recipe("lvis")


def test_the_r50_detector_is_as_large_as_the_released_one_and_trains(
    tiny_inputs: list[LabelledImage],
) -> None:
    config = load_recipe("lvis_r50_baseline").detector
    torch.manual_seed(0)
    # The pyramid and the heads are the published ones; few proposals keep the step short.
    detector: Any = build_detector(
        dataclasses.replace(config, proposals_per_image=50, rois_per_image=16),
        N_CLASSES,
        [1 + i % 200 for i in range(N_CLASSES)],
    )

    n_trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    # BSGAL's code gives the length of its gradient vector; its three classifiers have a row for
    # the background, ours have none.
    assert n_trained == 77_722_099 - 3 * (1024 + 1)
    losses = training_losses(detector, tiny_inputs, "fp32", seed=0)
    torch.stack(list(losses.values())).sum().backward()
    assert all(math.isfinite(float(value.detach())) for value in losses.values())
    assert all(p.grad is not None for p in detector.roi_heads.parameters())
    rows = detector.roi_heads.box_predictor[0].cls_score.weight.grad.abs().sum(1) > 0
    assert int(rows.sum()) == 50
