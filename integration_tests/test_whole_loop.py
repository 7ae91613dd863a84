"""From prompts to verdicts and LVIS scores, with the command lines a user would call."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from bsgal_train import cli as train_cli
from bsgal_train.builtin_dataset.dataset import BuiltinDataset
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics


def rows_of(manifest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def train(folder: Path, recipe: str, assignments: Sequence[str]) -> int:
    options = [part for assignment in assignments for part in ("--set", assignment)]
    return train_cli.main(["train", "--recipe", recipe, "--out", str(folder), *options])


def coco_mini_settings(coco_mini: Path) -> list[str]:
    return [
        f"data.train_json={coco_mini / 'lvis_train.json'}",
        f"data.val_json={coco_mini / 'lvis_val.json'}",
        f"data.image_root={coco_mini / 'images' / 'train'}",
        f"data.val_image_root={coco_mini / 'images' / 'val'}",
        "data.crop_px=160",
        "detector.image_px=256",
    ]


@pytest.fixture(scope="module")
def selected_run(
    builtin: BuiltinDataset, pool: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A few steps with selection on the built-in data, evaluated."""
    folder = tmp_path_factory.mktemp("selected") / "run"
    settings = [
        f"data.builtin_root={builtin.root}",
        f"paste.pool={pool}",
        "selection.mode=paper",
        "schedule.n_steps=4",
        "schedule.batch_size=2",
        "schedule.log_every=1",
    ]
    assert train(folder, "builtin_continue", settings) == 0
    return folder


def test_every_image_becomes_one_row_of_the_pool(image_set: Path, pool: Path) -> None:
    images, instances = rows_of(image_set / "manifest.jsonl"), rows_of(pool / "manifest.jsonl")
    assert len(images) == len(instances) > 0
    assert {row["sample_id"] for row in images} == {row["sample_id"] for row in instances}
    kept = [row for row in instances if row["status"] == "kept"]
    assert len(kept) > len(instances) / 2, "most drawings on a plain background can be cut out"
    assert all((pool / str(row["file"])).is_file() for row in kept)


def test_selection_judges_what_was_pasted(selected_run: Path, pool: Path) -> None:
    decisions = read_decisions(selected_run / "decisions").to_pylist()
    assert decisions
    known = {row["instance_id"] for row in rows_of(pool / "manifest.jsonl")}
    assert {row["instance_id"] for row in decisions} <= known
    for row in decisions:
        if row["verdict"] in ("accept", "reject"):
            assert -1.0 <= row["contribution"] <= 1.0
            assert (row["verdict"] == "accept") == (row["contribution"] >= row["threshold"])
    assert any(row["verdict"] in ("accept", "reject") for row in decisions)


def test_run_ends_with_lvis_scores(selected_run: Path) -> None:
    results = json.loads((selected_run / "results.json").read_text(encoding="utf-8"))
    metrics = results["evaluation"]["metrics"]
    assert metrics["segm"]["apf"] > 0.2, "the shipped detector finds frequent categories"
    assert metrics["segm"]["apr"] < metrics["segm"]["apf"]
    assert set(metrics) == {"bbox", "segm"}


def test_real_photographs_train_and_evaluate_with_the_same_commands(
    coco_mini: Path, pool: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = [
        *coco_mini_settings(coco_mini),
        f"paste.pool={pool}",
        "selection.mode=paper",
        "schedule.n_steps=30",
        "schedule.batch_size=2",
        "schedule.warmup_steps=5",
        "schedule.log_every=1",
    ]
    assert train(folder, "coco_mini", settings) == 0
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 30
    assert all(map(math.isfinite, losses))
    assert sum(losses[-10:]) < sum(losses[:10])
    decisions = read_decisions(folder / "decisions").to_pylist()
    judged = {row["category_id"] for row in decisions}
    annotations = json.loads((coco_mini / "lvis_train.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    assert {names[category_id] for category_id in judged} <= {
        "broccoli", "carrot", "pizza", "umbrella", "elephant", "clock", "cake",
    }  # fmt: skip
    options = [part for setting in coco_mini_settings(coco_mini) for part in ("--set", setting)]
    evaluate = ["eval", "--recipe", "coco_mini", "--detector", str(folder), *options]
    assert train_cli.main([*evaluate, "--out", str(tmp_path / "eval")]) == 0
    again = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))
    first = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert again["evaluation"] == first["evaluation"]


@pytest.mark.parametrize(
    "mode",
    ["none", "paste_all", "paste_random", "paper", "batch", "image", "instance", "oracle"],
)
def test_every_mode_trains_on_photographs_and_is_evaluated(
    mode: str, coco_mini: Path, pool: Path, tmp_path: Path
) -> None:
    settings = [
        *coco_mini_settings(coco_mini),
        f"paste.pool={pool}",
        f"selection.mode={mode}",
        *(["selection.images_per_class=1"] if mode == "instance" else []),
        "data.crop_px=128",
        # Every instance costs the oracle two steps.
        f"schedule.n_steps={1 if mode == 'oracle' else 3}",
        "schedule.batch_size=2",
        "schedule.log_every=1",
    ]
    assert train(tmp_path, "coco_mini", settings) == 0
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert all(map(math.isfinite, losses))
    n_judged = read_decisions(tmp_path / "decisions").num_rows
    assert (n_judged > 0) == (mode not in ("none", "paste_all"))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results["evaluation"]["metrics"]) == {"bbox", "segm"}


def test_pool_without_a_category_of_the_data_is_refused_before_training(
    coco_mini: Path, tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = json.loads((coco_mini / "lvis_train.json").read_text(encoding="utf-8"))
    for category in annotations["categories"]:
        category["name"] = f"thing {category['id']}"
        category["synonyms"] = [category["name"]]
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(annotations), encoding="utf-8")
    settings = [
        f"data.train_json={renamed}",
        f"data.image_root={coco_mini / 'images' / 'train'}",
        f"paste.pool={pool}",
        "selection.mode=paper",
    ]
    folder = tmp_path / "run"
    assert train(folder, "coco_mini", settings) == 1
    message = capsys.readouterr().err
    assert "broccoli" in message
    assert "thing 1" in message
    assert not folder.exists()
