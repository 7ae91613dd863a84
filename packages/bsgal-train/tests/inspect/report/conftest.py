"""A run's folder as training leaves it, made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.evaluation import evaluate_lvis
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import Decision, DecisionLog

Decide = Callable[..., Decision]


@pytest.fixture
def decide() -> Decide:
    """Return a maker of decisions with sensible values."""

    def make(step: int, instance_id: str, verdict: str, **changes: Any) -> Decision:
        category_id = 3 if instance_id.startswith("103") else 5
        values: dict[str, Any] = {
            "step": step,
            "image_id": 1,
            "instance_id": instance_id,
            "category_id": category_id,
            "frequency": "r" if category_id == 3 else "c",
            "granularity": "instance",
            "contribution": 0.25 if verdict == "accept" else -0.25,
            "threshold": 0.0,
            "verdict": verdict,
            "accepted_share": 0.5,
        }
        return Decision(**(values | changes))

    return make


@pytest.fixture
def run_folder(tiny_recipe: Recipe, tiny_data: Path, tmp_path: Path, decide: Decide) -> Path:
    """Return a finished run: perfect boxes of the red category, everything else missed."""
    folder = tmp_path / "run"
    folder.mkdir()
    tiny_recipe.override("selection.mode=paste_all").save(folder / "recipe.json")
    log = DecisionLog(folder / "decisions", resumed_step=0)
    log.add(
        [
            decide(1, "103-0", "accept"),
            decide(1, "103-1", "accept", contribution=0.75),
            decide(1, "105-0", "reject", contribution=-0.5),
            decide(2, "103-0", "accept", contribution=0.5),
            decide(2, "103-1", "reject", contribution=-0.125),
            decide(4, "105-0", "no_evidence", contribution=None),
        ]
    )
    log.flush(4)
    rows = [{"step": step, "loss": 4.0 / step, "val/ap": 0.1 * step} for step in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = json.loads((tiny_data / "val.json").read_text())
    predictions = [
        {**found, "score": 0.9} for found in document["annotations"] if found["category_id"] == 3
    ]
    annotations = LvisAnnotations.load(tiny_data / "val.json", tiny_data)
    result = evaluate_lvis(annotations.path, predictions, iou_types=("bbox",)).to_dict()
    # Masks as good as boxes, which keeps the fixture short.
    result["metrics"]["segm"] = result["metrics"]["bbox"]
    for category in result["categories"]:
        for metric in ("ap", "ap50", "ar"):
            category[metric]["segm"] = category[metric]["bbox"]
    summary = {"n_steps": 5, "step_s": 0.5, "accepted_share": 0.6, "evaluation": result}
    (folder / "results.json").write_text(json.dumps(summary))
    return folder
