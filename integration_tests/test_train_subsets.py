"""What the benchmark `train_subsets` holds against each other: halves, sums of scores, results."""

from __future__ import annotations

import json
from pathlib import Path

import bench_train_subsets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from train_study.pools import StudyPool
from train_study.score_table import read_scores
from train_study.subsets import Half, chosen_half, correlation, sums

CATEGORY_OF = {f"{category}-{n}": category for category in (3, 36) for n in range(category)}


def test_a_half_has_half_of_every_category_and_is_the_same_each_time() -> None:
    half = chosen_half(CATEGORY_OF.keys(), CATEGORY_OF, 5)
    assert sum(one.startswith("36-") for one in half) == 18
    assert sum(one.startswith("3-") for one in half) == 2
    assert half == chosen_half(list(CATEGORY_OF)[::-1], CATEGORY_OF, 5)
    assert half != chosen_half(CATEGORY_OF.keys(), CATEGORY_OF, 6)


def test_an_instance_without_a_score_counts_as_the_mean() -> None:
    halves = [Half(frozenset({"a", "b"}), {}), Half(frozenset({"b", "unknown"}), {})]
    assert sums(halves, {"a": 1.0, "b": 4.0}).tolist() == [5.0, 6.5]


def test_correlation_is_spearmans_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    found = correlation(x, y)
    assert found["spearman"] == pytest.approx(spearmanr(x, y).statistic)
    assert found["low"] < found["spearman"] < found["high"]
    assert found["low"] > 0
    assert correlation(x, -x)["spearman"] == pytest.approx(-1)
    assert np.isnan(correlation(x, np.ones(40))["spearman"])


def test_a_score_that_decides_the_result_is_seen_and_one_that_does_not_is_not() -> None:
    rng = np.random.default_rng(1)
    good = {one: float(rng.random()) for one in CATEGORY_OF}
    any_other = {one: float(rng.random()) for one in CATEGORY_OF}
    halves = []
    for n in range(60):
        ids = chosen_half(CATEGORY_OF.keys(), CATEGORY_OF, n)
        worth = sum(good[one] for one in ids)
        halves.append(Half(ids, {"balanced_real_loss": 9 - worth, "apr": worth}))
    rows = bench_train_subsets.compared(halves, {"good": good, "other": any_other})
    headline = bench_train_subsets.headline_of(rows)
    assert headline["spearman_good"] == 1.0
    assert headline["spearman_apr_good"] == 1.0
    assert headline["spearman_other_low"] < 0.3
    assert "| other |" in bench_train_subsets.tables({"rows": rows})["scores"]


def test_scores_are_read_from_json_and_parquet_with_rows_of_one_id_averaged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"cosine": {"x": 0.5, "y": None}}))
    assert read_scores(str(tmp_path / "a.json")) == {"cosine": {"x": 0.5}}
    columns = {"id": ["x", "x", "y"], "loss": [1.0, 3.0, None], "looks": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    assert read_scores(str(tmp_path / "b.parquet")) == {"loss": {"x": 2.0}}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("missing.json", None, "missing.json is missing"),
        ("broken.json", "{", "must be an object such as"),
        ("flat.json", '{"x": 1}', "must be an object such as"),
        ("empty.json", '{"cosine": {}}', "holds no score cosine"),
        ("table.csv", "x", "give a .json, .parquet or .npz file, or NAME=RUN"),
    ],
)
def test_what_is_wrong_with_scores_is_said(
    tmp_path: Path, name: str, text: str | None, complaint: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=complaint):
        read_scores(str(tmp_path / name))


def test_scores_of_another_pool_are_refused() -> None:
    pool = StudyPool("small", Path("small"), {}, {"a": "r", "b": "f"})
    bench_train_subsets.check({"cosine": {"a": 1.0}}, pool)
    with pytest.raises(SystemExit, match="the score cosine is of none of the instances of small"):
        bench_train_subsets.check({"cosine": {"z": 1.0}}, pool)
