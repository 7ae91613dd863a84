from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bsgal_paste import EmptyPoolError, NoCommonCategoryError, PoolFormatError
from bsgal_train.annotations.derived import file_sha256
from bsgal_train.engine.run import evaluate, train
from bsgal_train.engine.step import DivergedError
from bsgal_train.engine.trainer import Trainer, TrainingInterruptedError
from bsgal_train.errors import (
    AnnotationError,
    MissingImagesError,
    OtherModelError,
    UnknownCategoryError,
)
from bsgal_train.evaluation import PredictionShards
from bsgal_train.inspect.compare import compare_runs
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.run_log import read_metrics

MODES = ("none", "paste_random", "paper", "batch", "image", "instance")


class StoppedError(Exception):
    """The run was cut off by the test."""


def stop_at(step: int) -> Any:
    def progress(done: int, total: int, detail: str) -> None:
        if done == step:
            raise StoppedError

    return progress


def outcome(folder: Path) -> tuple[bytes, list[dict[str, float]], list[dict[str, Any]]]:
    """Return what must not differ between two runs: weights, metrics and decisions."""
    rows = read_metrics(folder / "metrics.jsonl")
    for row in rows:
        for name in ("step_s", "scoring_s", "overhead_share"):
            row.pop(name, None)
    weights = (folder / "detector.safetensors").read_bytes()
    return weights, rows, read_decisions(folder / "decisions").to_pylist()


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    mode: str, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(f"selection.mode={mode}", "detector.drop_path=0.5")
    train(recipe, tmp_path / "whole")
    # Step 3 is after the checkpoint of step 2: it is done again.
    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "resumed", progress=stop_at(3))

    train(recipe, tmp_path / "resumed")

    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")


def test_loader_processes_change_nothing(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path / "none")
    train(tiny_recipe.override("data.n_workers=2"), tmp_path / "two")

    assert outcome(tmp_path / "none") == outcome(tmp_path / "two")


def test_another_seed_gives_another_run(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path / "a")
    train(tiny_recipe.override("schedule.seed=1"), tmp_path / "b")

    assert outcome(tmp_path / "a")[0] != outcome(tmp_path / "b")[0]


def test_a_run_leaves_everything_to_understand_it(tiny_recipe: Recipe, tmp_path: Path) -> None:
    result = train(tiny_recipe, tmp_path)

    assert Recipe.load(tmp_path / "recipe.json") == tiny_recipe
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["n_steps"] == 5
    assert summary["evaluation"]["metrics"]["segm"]["ap"] == result.evaluation.metrics["segm"].ap  # type: ignore[union-attr]
    assert result.step_s > 0
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert read_decisions(tmp_path / "decisions").num_rows > 0
    assert len(load_file(tmp_path / "detector.safetensors")) > 10


def test_a_finished_run_is_only_summed_up_again(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path)
    before = outcome(tmp_path)

    steps: list[int] = []
    train(tiny_recipe, tmp_path, progress=lambda done, total, detail: steps.append(done))

    assert steps == []
    assert outcome(tmp_path) == before


def test_ctrl_c_saves_a_checkpoint_after_the_step(tiny_recipe: Recipe, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(done: int, total: int, detail: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    train(tiny_recipe, tmp_path / "whole")
    with pytest.raises(TrainingInterruptedError, match="stopped after step 3 of 5"):
        train(tiny_recipe, tmp_path / "interrupted", progress=interrupt)
    train(tiny_recipe, tmp_path / "interrupted")

    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "whole")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_loss_that_is_not_finite_names_step_and_images(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override("optimizer.lr=1e30", "selection.mode=none")

    with pytest.raises(DivergedError, match=r"step \d: .* images were \d, \d, .* instances none"):
        train(recipe, tmp_path)

    (path,) = (tmp_path / "nonfinite").iterdir()
    record = json.loads(path.read_text())
    assert f"step {record['step']}: " in record["message"]
    assert [set(one) for one in record["samples"]] == [
        {"position", "image_id", "file_name", "instance_ids"}
    ] * 2
    assert bytes.fromhex(record["torch_random_state"])


def test_a_run_with_evaluations_on_the_way_equals_one_without(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    train(tiny_recipe, tmp_path / "without")
    train(tiny_recipe.override("schedule.eval_every=2"), tmp_path / "with")

    rows = read_metrics(tmp_path / "with/metrics.jsonl")
    assert [row["step"] for row in rows if "val/ap" in row] == [2, 4]
    assert outcome(tmp_path / "with")[0] == outcome(tmp_path / "without")[0]


def test_a_trained_detector_is_evaluated_alike_later(tiny_recipe: Recipe, tmp_path: Path) -> None:
    result = train(tiny_recipe, tmp_path)

    assert evaluate(tiny_recipe, str(tmp_path), tmp_path / "again") == result.evaluation
    found = PredictionShards(tmp_path / "again/predictions")
    assert len(found) == len(PredictionShards(tmp_path / "predictions")) > 0


def test_a_later_evaluation_says_what_it_was_made_from(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    train(tiny_recipe.override("schedule.n_steps=1"), tmp_path / "run")
    other = tiny_recipe.override("detector.nms_threshold=0.7")
    for name, recipe in (("a", tiny_recipe), ("b", other)):
        evaluate(recipe, str(tmp_path / "run"), tmp_path / name)

    found = json.loads((tmp_path / "b/results.json").read_text())

    assert Recipe.from_dict(found["recipe"]) == other
    assert found["provenance"]["inputs"]["validation"]["sha256"] == file_sha256(
        tiny_data / "val.json"
    )
    assert found["detector"]["sha256"] == file_sha256(tmp_path / "run/detector.safetensors")
    compared = compare_runs(tmp_path / "a", tmp_path / "b")
    assert compared.recipe == {"detector.nms_threshold": (0.5, 0.7)}
    assert not compared.inputs
    assert not compared.summary
    assert compared.metrics


def test_results_count_the_validation_images_that_cannot_be_read(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    document = json.loads((tiny_data / "val.json").read_text())
    (tiny_data / "val/broken.png").write_bytes(b"no image")
    document["images"][1]["file_name"] = "val/broken.png"
    path = tmp_path / "val.json"
    path.write_text(json.dumps(document))

    train(tiny_recipe.override(f"data.val_json={path}", "schedule.n_steps=1"), tmp_path / "run")

    skipped = json.loads((tmp_path / "run/results.json").read_text())["skipped_files"]
    ((message, count),) = skipped["validation"].items()
    assert "val/broken.png cannot be read" in message
    assert count == 1
    assert skipped["training"] == {}


def test_category_ids_may_begin_at_zero(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Ids are names: the same run, with 0 in place of the lowest one."""
    renamed = {3: 0, 5: 5, 9: 9}
    for split in ("train", "val"):
        document = json.loads((tiny_data / f"{split}.json").read_text())
        document["categories"][0]["id"] = 0
        for annotation in document["annotations"]:
            annotation["category_id"] = renamed[annotation["category_id"]]
        for image in document["images"]:
            image["neg_category_ids"] = [renamed[i] for i in image["neg_category_ids"]]
        (tmp_path / f"{split}.json").write_text(json.dumps(document))
    changed = tiny_recipe.override(
        "selection.mode=instance",
        f"data.train_json={tmp_path / 'train.json'}",
        f"data.val_json={tmp_path / 'val.json'}",
    )

    train(tiny_recipe.override("selection.mode=instance"), tmp_path / "three")
    train(changed, tmp_path / "zero")

    (weights, metrics, decisions), (others, other_metrics, expected) = (
        outcome(tmp_path / name) for name in ("zero", "three")
    )
    assert weights == others
    assert metrics == other_metrics
    assert decisions == [{**row, "category_id": renamed[row["category_id"]]} for row in expected]
    assert 0 in {row["category_id"] for row in decisions}
    zero, three = (
        json.loads((tmp_path / name / "results.json").read_text())["evaluation"]
        for name in ("zero", "three")
    )
    assert zero["metrics"] == three["metrics"]
    assert [row["category_id"] for row in zero["categories"]] == [0, 5, 9]


# Bad input: each is told before the first step, and leaves no checkpoint behind.


def assert_refused(
    recipe: Recipe, folder: Path, error: type[Exception], message: str, monkeypatch: Any
) -> None:
    def no_step(self: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(Trainer, "run", no_step)
    with pytest.raises(error, match=message):
        train(recipe, folder)


def changed_annotations(tiny_data: Path, tmp_path: Path, change: Any) -> str:
    document = json.loads((tiny_data / "train.json").read_text())
    change(document)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_missing_annotation_file_is_refused(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe.override("data.train_json=nowhere.json")

    assert_refused(recipe, tmp_path, AnnotationError, r"nowhere\.json", monkeypatch)


def test_a_missing_image_is_refused(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed_annotations(
        tiny_data, tmp_path, lambda d: d["images"][0].update(file_name="train/gone.png")
    )
    recipe = tiny_recipe.override(f"data.train_json={path}")

    assert_refused(recipe, tmp_path / "out", MissingImagesError, r"gone\.png", monkeypatch)


def test_an_annotation_of_an_unknown_category_is_refused(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed_annotations(
        tiny_data, tmp_path, lambda d: d["annotations"][0].update(category_id=77)
    )
    recipe = tiny_recipe.override(f"data.train_json={path}")

    assert_refused(recipe, tmp_path / "out", UnknownCategoryError, "77", monkeypatch)


def test_a_corrupt_image_is_skipped_and_named(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny_data / "train/corrupt.png").write_bytes(b"no image")
    path = changed_annotations(
        tiny_data, tmp_path, lambda d: d["images"][0].update(file_name="train/corrupt.png")
    )
    recipe = tiny_recipe.override(f"data.train_json={path}", "selection.mode=none")

    train(recipe, tmp_path / "out")

    assert "corrupt.png" in caplog.text


def test_validation_with_other_categories_is_refused(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed_annotations(
        tiny_data, tmp_path, lambda d: d["categories"].append({**d["categories"][0], "id": 50})
    )
    recipe = tiny_recipe.override(f"data.val_json={path}")

    assert_refused(recipe, tmp_path / "out", ValueError, r"same categories.*50", monkeypatch)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda meta, row: meta.update(schema="bsgal.instance_pool/9"), PoolFormatError, "pool/9"),
        (lambda meta, row: row.update(status="dropped", file=None), EmptyPoolError, "no kept"),
        (lambda meta, row: row.update(category_name="zebra"), NoCommonCategoryError, "zebra"),
    ],
)
def test_a_bad_pool_is_refused(
    change: Any,
    error: type[Exception],
    message: str,
    tiny_data: Path,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meta = json.loads((tiny_data / "pool/meta.json").read_text())
    row = json.loads((tiny_data / "pool/manifest.jsonl").read_text().splitlines()[0])
    change(meta, row)
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "meta.json").write_text(json.dumps(meta))
    (pool / "manifest.jsonl").write_text(json.dumps(row) + "\n")

    assert_refused(
        tiny_recipe.override(f"paste.pool={pool}"), tmp_path / "out", error, message, monkeypatch
    )


def test_a_pool_that_is_not_used_is_said(
    tiny_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe.override("selection.mode=none", "data.val_json=", "schedule.n_steps=1")
    train(recipe, tmp_path)

    assert "selection.mode=none pastes nothing: the pool" in caplog.text


def test_a_folder_of_another_run_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path)

    with pytest.raises(ValueError, match=r"other settings: schedule\.seed=0 \(now 3\)"):
        train(tiny_recipe.override("schedule.seed=3"), tmp_path)


def test_settings_that_change_no_number_may_differ(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path)

    train(tiny_recipe.override("checkpoint.keep=9", "data.n_workers=1"), tmp_path)


def test_an_output_path_that_is_a_file_is_refused(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")

    assert_refused(tiny_recipe, tmp_path / "file/out", OSError, "file", monkeypatch)


def test_a_checkpoint_of_another_model_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    short = tiny_recipe.override("schedule.n_steps=2", "selection.mode=none", "data.val_json=")
    train(short, tmp_path / "a")
    other = short.override("detector.box_features=64")
    train(other, tmp_path / "b")
    shutil.rmtree(tmp_path / "b/checkpoints")
    shutil.copytree(tmp_path / "a/checkpoints", tmp_path / "b/checkpoints")

    with pytest.raises(OtherModelError, match=r"is \(32, \d+\), not \(64, \d+\)"):
        train(other, tmp_path / "b")


def test_a_folder_that_cannot_be_written_is_refused(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not even root may make a folder there.
    assert_refused(tiny_recipe, Path("/sys/bsgal-run"), OSError, "bsgal-run", monkeypatch)


def test_a_detector_of_other_categories_is_not_evaluated(
    tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    train(tiny_recipe, tmp_path / "run")
    path = changed_annotations(
        tiny_data, tmp_path, lambda d: d["categories"][0].update(name="something else")
    )
    recipe = tiny_recipe.override(f"data.val_json={path}")

    with pytest.raises(ValueError, match="knows other categories"):
        evaluate(recipe, str(tmp_path / "run"))
