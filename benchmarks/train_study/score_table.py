"""Scores of a pool's instances, from what other commands wrote: larger is meant to be better."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

__all__ = ["Scores", "read_scores"]

Scores = Mapping[str, float]
"""A score by instance id."""

_ID = ("instance_id", "id")


def read_scores(source: str) -> dict[str, Scores]:
    """Return every score in a source, by its name.

    Args:
        source: a `.json` file, an object `{score: {instance id: number}}`; a `.parquet` file with a
            column `instance_id` (or `id`) and columns of numbers, of which rows of one id are
            averaged; a `.npz` file of `train_study.look_dump`, whose looks at one instance are;
            or `NAME=RUN`, the output folder of a run, whose logged contributions are.

    Raises:
        SystemExit: if there is no such source, or it holds no scores.
    """
    name, _, run = source.partition("=")
    path = Path(run or source)
    if not path.exists():
        raise SystemExit(f"--scores {source}: {path} is missing")
    if run:
        found = {name: _of_run(path)}
    elif path.suffix == ".json":
        found = _of_json(path)
    elif path.suffix == ".parquet":
        found = _of_parquet(path)
    elif path.suffix == ".npz":
        found = _of_looks(path)
    else:
        raise SystemExit(
            f"--scores {source}: give a .json, .parquet or .npz file, or NAME=RUN of a run's folder"
        )
    empty = [one for one, scores in found.items() if not scores]
    if empty or not found:
        raise SystemExit(f"--scores {source}: it holds no score {', '.join(empty)}")
    return found


def _of_run(run: Path) -> Scores:
    from bsgal_train.run_folder.decision_log import read_decisions

    log = read_decisions(run / "decisions")
    return _means(log["instance_id"].to_pylist(), log["contribution"].to_pylist())


def _of_json(path: Path) -> dict[str, Scores]:
    form = f'{path} must be an object such as {{"cosine": {{"127-0004": 0.3}}}}'
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        return {name: _means(scores.keys(), scores.values()) for name, scores in whole.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise SystemExit(f"{form}: {error}") from None


def _of_parquet(path: Path) -> dict[str, Scores]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    key = next((one for one in _ID if one in table.column_names), None)
    if key is None:
        raise SystemExit(f"{path} has no column {' or '.join(_ID)}, but {table.column_names}")
    ids = table[key].to_pylist()
    return {
        field.name: _means(ids, table[field.name].to_pylist())
        for field in table.schema
        if pa.types.is_floating(field.type)
    }


def _of_looks(path: Path) -> dict[str, Scores]:
    from train_study.look_table import sources

    with np.load(path) as file:
        looks = {name: file[name] for name in file.files}
    pasted = ~looks["is_real"]
    ids = looks["id"][pasted].tolist()
    return {
        name.replace(", ", "_").replace(" ", "_"): _means(ids, values[pasted].tolist())
        for name, values in sources(looks).items()
    }


def _means(ids: Iterable[str], values: Iterable[float | None]) -> Scores:
    """Return the mean of the finite values of each id."""
    by_id: dict[str, list[float]] = {}
    for one, value in zip(ids, values, strict=True):
        if value is not None and np.isfinite(value):
            by_id.setdefault(one, []).append(float(value))
    return {one: float(np.mean(own)) for one, own in by_id.items()}
