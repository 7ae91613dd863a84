from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.evaluation import FIXED_AP, PredictionShards, PredictionWriter, evaluate_lvis
from bsgal_train.evaluation import shards as shards_module

Predictions = list[dict[str, Any]]


def write(folder: Path, *processes: Predictions) -> PredictionShards:
    for number, predictions in enumerate(processes):
        with PredictionWriter(folder, number, len(processes)) as writer:
            for start in range(0, len(predictions), 10):
                writer.add(predictions[start : start + 10])
    return PredictionShards(folder)


@pytest.mark.parametrize("limit", [None, 5])
def test_shards_give_the_result_of_the_list(
    document: dict[str, Any], predictions: Predictions, limit: int | None, tmp_path: Path
) -> None:
    shards = write(tmp_path, predictions)

    assert len(shards) == len(predictions)
    assert evaluate_lvis(document, shards, max_detections=limit) == evaluate_lvis(
        document, predictions, max_detections=limit
    )


def test_ties_at_the_limit_are_broken_as_in_the_list(
    document: dict[str, Any], predictions: Predictions, tmp_path: Path
) -> None:
    for prediction in predictions:
        prediction["score"] = 0.5
    expected = evaluate_lvis(document, predictions, max_detections=7)

    assert evaluate_lvis(document, write(tmp_path, predictions), max_detections=7) == expected
    fixed = evaluate_lvis(document, predictions, max_detections=7, protocol=FIXED_AP)
    shards = PredictionShards(tmp_path)
    assert evaluate_lvis(document, shards, max_detections=7, protocol=FIXED_AP) == fixed


def test_limit_is_the_same_a_few_images_at_a_time(
    document: dict[str, Any],
    predictions: Predictions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards_module, "_ROWS_SORTED", 30)
    for prediction in predictions:
        prediction["score"] = round(prediction["score"], 1)
    result = evaluate_lvis(document, write(tmp_path, predictions), max_detections=5)

    assert result == evaluate_lvis(document, predictions, max_detections=5)
    assert result.n_over_limit > 0


def test_images_within_the_limit_are_not_sorted(
    document: dict[str, Any], predictions: Predictions, tmp_path: Path
) -> None:
    n_most = max(Counter(prediction["image_id"] for prediction in predictions).values())
    shards = write(tmp_path, predictions)

    assert len(shards.over_limit(n_most)) == 0
    assert len(shards.over_limit(n_most - 1)) > 0


def test_shards_of_several_processes_are_merged(
    document: dict[str, Any], predictions: Predictions, tmp_path: Path
) -> None:
    parts: list[Predictions] = [[], [], []]
    for prediction in predictions:
        parts[prediction["image_id"] % 3].append(prediction)
    one_after_another = [prediction for part in parts for prediction in part]

    assert evaluate_lvis(document, write(tmp_path, *parts)) == evaluate_lvis(
        document, one_after_another
    )


def test_flushing_changes_nothing(
    document: dict[str, Any],
    predictions: Predictions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards_module, "_ROWS_IN_MEMORY", 25)

    assert evaluate_lvis(document, write(tmp_path, predictions)) == evaluate_lvis(
        document, predictions
    )


def test_predictions_come_back(predictions: Predictions, tmp_path: Path) -> None:
    found = list(write(tmp_path, predictions).predictions())

    def key(prediction: dict[str, Any]) -> str:
        return json.dumps(prediction, sort_keys=True)

    assert sorted(map(key, found)) == sorted(map(key, predictions))


def test_no_predictions_are_a_shard_too(document: dict[str, Any], tmp_path: Path) -> None:
    assert evaluate_lvis(document, write(tmp_path, [])) == evaluate_lvis(document, [])


def test_a_missing_process_is_named(predictions: Predictions, tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, 1, 2) as writer:
        writer.add(predictions)

    with pytest.raises(ValueError, match=r"the shards of 2 processes, it has \['process-0001'\]"):
        PredictionShards(tmp_path)


def test_an_image_of_two_processes_is_refused(predictions: Predictions, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was predicted by process-0001 and by a process before"):
        write(tmp_path, predictions, predictions[:1])


def test_an_interrupted_writer_leaves_nothing(predictions: Predictions, tmp_path: Path) -> None:
    def write_and_stop() -> None:
        with PredictionWriter(tmp_path) as writer:
            writer.add(predictions)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_stop()

    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="there are no predictions"):
        PredictionShards(tmp_path)


def test_writing_again_replaces_what_was_there(predictions: Predictions, tmp_path: Path) -> None:
    write(tmp_path, predictions)

    assert len(write(tmp_path, predictions[:3])) == 3


def test_bad_prediction_in_a_shard_is_named(
    document: dict[str, Any], predictions: Predictions, tmp_path: Path
) -> None:
    predictions[4]["score"] = float("nan")

    with pytest.raises(ValueError, match=r"prediction 4 in .* has the score nan"):
        evaluate_lvis(document, write(tmp_path, predictions))


def test_bad_prediction_of_a_later_process_is_named_by_its_place_among_all(
    document: dict[str, Any], predictions: Predictions, tmp_path: Path
) -> None:
    parts: list[Predictions] = [[], []]
    for prediction in predictions:
        parts[prediction["image_id"] % 2].append(prediction)
    parts[1][3]["score"] = float("nan")

    with pytest.raises(ValueError, match=rf"prediction {len(parts[0]) + 3} in .* score nan"):
        evaluate_lvis(document, write(tmp_path, *parts))


def test_another_schema_is_refused(predictions: Predictions, tmp_path: Path) -> None:
    write(tmp_path, predictions)
    meta = tmp_path / "process-0000/meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "schema": "bsgal.predictions/9"}))

    with pytest.raises(ValueError, match=r"bsgal\.predictions/9"):
        PredictionShards(tmp_path)
