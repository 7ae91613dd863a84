"""Every selection mode trains a CenterNet2: the heads tell it all that it needs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bsgal_train.engine.run import train
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

JUDGING = ("paper", "batch", "image", "instance", "oracle")


@pytest.mark.parametrize("mode", ["none", "paste_all", "paste_random", *JUDGING])
def test_mode(mode: str, tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe.override(
        "detector.architecture=centernet2",
        "detector.head_norm=none",
        "detector.n_box_convs=0",
        "detector.n_box_fcs=2",
        "detector.federated_classes=2",
        # Every instance costs the oracle two steps.
        f"schedule.n_steps={1 if mode == 'oracle' else 3}",
        "data.val_json=",
        f"selection.mode={mode}",
        # Of a handful of real objects, and one look, no more can be said.
        *(("selection.min_looks=1", "selection.alpha=0.4") if mode == "instance" else ()),
    )

    train(recipe, tmp_path)

    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert len(rows) == recipe.schedule.n_steps
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert {f"loss_cls_stage{stage}" for stage in range(3)} <= set(rows[0])
    if mode in JUDGING:
        decisions = read_decisions(tmp_path / "decisions").to_pylist()
        judged = [row for row in decisions if row["verdict"] in ("accept", "reject")]
        assert judged
        assert all(math.isfinite(row["contribution"]) for row in judged)
