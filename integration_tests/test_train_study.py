"""The study as a stranger runs it: on a pool of theirs, with what may be wrong with it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control, ttest_rel
from sprite_pool import write_sprite_pool
from train_study.arms import ARMS, in_order
from train_study.pools import StudyPool, open_pool
from train_study.summary import headline_of, holm, recovered, summaries
from train_study.tables import tables
from train_study.verdicts import (
    finally_bad,
    of_draws,
    of_instances,
    recall_where_few_are_lost,
)

from bsgal_train.builtin_dataset.dataset import BuiltinDataset
from bsgal_train.recipe.library import load_recipe

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "bench_train_study.py"
# Two rare categories and a frequent one.
OF_STRANGER = (36, 45, 207)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of three categories and any number of instances, with a kind that nobody has seen."""
    whole = write_sprite_pool(tmp_path_factory.mktemp("whole") / "pool", 5)
    folder = tmp_path_factory.mktemp("their") / "things"
    shutil.copytree(whole, folder)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["category_id"] in OF_STRANGER][:-2]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    planted = {row["instance_id"]: "upside_down" for row in kept[::3]}
    (folder / "planted.json").write_text(json.dumps(planted))
    return folder


@pytest.fixture
def state(tmp_path: Path, builtin: BuiltinDataset) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "dataset").symlink_to(builtin.root)
    return tmp_path / "state"


def test_a_pool_of_some_categories_is_opened_with_its_groups(stranger: Path, state: Path) -> None:
    pool = open_pool(str(stranger), state, 1)
    assert pool.kinds == ("upside_down",)
    assert len(pool.groups) == 13
    assert {pool.groups[f"{one}-0000"] for one in OF_STRANGER} == {"r", "f"}
    assert pool.name.startswith("things-")


def test_another_planted_json_is_another_pool(stranger: Path, state: Path, tmp_path: Path) -> None:
    other = tmp_path / "things"
    shutil.copytree(stranger, other)
    assert open_pool(str(other), state, 1).name == open_pool(str(stranger), state, 1).name
    (other / "planted.json").write_text('{"36-0000": "smeared"}')
    assert open_pool(str(other), state, 1).name != open_pool(str(stranger), state, 1).name


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("planted.json", None, "planted.json is missing, so what is spoilt is unknown"),
        ("planted.json", "{", "planted.json is not JSON"),
        ("planted.json", '["36-0000"]', "planted.json holds a list"),
        ("planted.json", '{"36-0000": 3}', "the kind of '36-0000' is 3, not a text"),
        ("planted.json", '{"nobody": "noise"}', "1 instances that manifest.jsonl does not have"),
        ("meta.json", None, "it has no meta.json"),
        ("manifest.jsonl", None, "manifest.jsonl"),
        ("manifest.jsonl", "{\n", "manifest.jsonl"),
        ("instances/36/36-0000.png", None, "1 of 13 instances have no picture"),
    ],
)
def test_what_is_wrong_with_a_pool_is_said(
    stranger: Path, state: Path, tmp_path: Path, file: str, text: str | None, complaint: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(stranger, broken)
    if text is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(text)
    with pytest.raises(SystemExit, match=complaint):
        open_pool(str(broken), state, 1)


def test_a_folder_that_is_not_there_is_told_from_a_pool_of_the_study(state: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such folder.*drawn-held_back"):
        open_pool("nowhere", state, 1)


def test_a_pool_without_a_good_instance_is_refused(
    stranger: Path, state: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(stranger, spoilt)
    lines = (spoilt / "manifest.jsonl").read_text().splitlines()
    ids = [json.loads(line)["instance_id"] for line in lines]
    (spoilt / "planted.json").write_text(json.dumps(dict.fromkeys(ids, "noise")))
    with pytest.raises(SystemExit, match="every instance is spoilt"):
        open_pool(str(spoilt), state, 1)


POOL = StudyPool(
    "small",
    Path("unused"),
    {"spoilt-1": "noise", "spoilt-2": "holes"},
    {"spoilt-1": "r", "spoilt-2": "f", "good-1": "r", "good-2": "f", "good-3": "f"},
)


def decision(instance_id: str, verdict: str, contribution: float | None = 0.0) -> dict[str, Any]:
    return {"instance_id": instance_id, "verdict": verdict, "contribution": contribution}


def test_draws_are_counted_by_kind_and_group() -> None:
    log = [
        decision("spoilt-1", "reject", -1.0),
        decision("spoilt-1", "accept", 0.5),
        decision("spoilt-2", "reject", -1.0),
        decision("good-1", "accept", 1.0),
        decision("good-2", "reject", -0.5),
        decision("good-3", "accept", 1.0),
        # Trained on, as what is accepted.
        decision("good-3", "no_evidence", None),
    ]
    found = of_draws(log, POOL)
    assert found["defect_recall"] == pytest.approx(2 / 3)
    assert found["recall_noise"] == 0.5
    assert found["recall_holes"] == 1.0
    assert found["good_lost"] == 0.25
    assert found["good_lost_r"] == 0.0
    assert found["good_lost_f"] == pytest.approx(1 / 3)
    assert np.isnan(found["good_lost_c"])
    assert found["accepted"] == pytest.approx(4 / 7)
    assert found["defect_precision"] == pytest.approx(2 / 3)
    # Of the nine pairs of a spoilt and a good draw only 0.5 against -0.5 is in the wrong order.
    assert found["defect_auc"] == pytest.approx(8 / 9)


def test_instances_are_counted_once_by_their_last_verdict_and_undrawn_ones_as_good() -> None:
    log = [
        decision("spoilt-1", "reject"),
        decision("spoilt-1", "accept"),
        decision("spoilt-2", "accept"),
        decision("spoilt-2", "reject"),
        decision("good-2", "reject"),
    ]
    assert finally_bad(log) == {"spoilt-2", "good-2"}
    found = of_instances(finally_bad(log), POOL)
    assert found["instance_recall"] == 0.5
    assert found["instance_recall_holes"] == 1.0
    assert found["instance_recall_noise"] == 0.0
    assert found["instance_good_lost"] == pytest.approx(1 / 3)
    assert found["instance_good_lost_r"] == 0.0
    assert found["instance_good_lost_f"] == 0.5


def test_holm_corrects_step_by_step() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    p = np.random.default_rng(0).random(20) ** 3
    named = holm({str(n): value for n, value in enumerate(p)})
    ours = np.array([named[str(n)] for n in range(20)])
    assert (ours >= p).all()
    assert (ours <= np.minimum(1, 20 * p)).all()
    # Less strict methods reject at least as much.
    assert (ours >= false_discovery_control(p) - 1e-12).all()


def runs_of(pool: str, apr: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {"pool": pool, "arm": arm, "seed": seed, "ap": 0.5 + value, "apr": value,
         "instance_recall": 0.7, "instance_good_lost": 0.02, "steps": 120}
        for arm, values in apr.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


APR = {
    "paste_all": [0.17, 0.18, 0.19, 0.18],
    "paste_clean": [0.22, 0.24, 0.23, 0.24],
    "class_row": [0.19, 0.21, 0.20, 0.20],
}


def test_differences_are_paired_and_corrected_for_the_number_of_arms() -> None:
    rows = {row["arm"]: row for row in summaries(runs_of("any", APR))}
    raw = {
        arm: ttest_rel(APR[arm], APR["paste_all"]).pvalue for arm in ("paste_clean", "class_row")
    }
    row = rows["class_row"]
    assert row["apr_minus_paste_all"] == pytest.approx(0.02)
    assert row["apr_p_paste_all"] == pytest.approx(holm(raw)["class_row"])
    assert row["apr_low_paste_all"] < 0.02 < row["apr_high_paste_all"]
    assert row["apr_recovered"] == pytest.approx(0.02 / 0.0525)
    assert row["apr_recovered_low"] <= row["apr_recovered"] <= row["apr_recovered_high"]
    assert rows["paste_clean"]["apr_recovered"] == pytest.approx(1.0)
    assert "apr_recovered" not in rows["paste_all"]


def test_nothing_is_recovered_where_there_is_nothing_to_gain() -> None:
    assert recovered("apr", np.array([0.01, 0.02]), np.array([-0.01, 0.0])) == {}


def test_the_headline_has_the_first_pool_and_the_held_back_one() -> None:
    better = {arm: [value + 0.1 for value in values] for arm, values in APR.items()}
    rows = list(summaries([*runs_of("first", APR), *runs_of("second", better)]))
    headline = headline_of(rows, "second")
    assert headline["apr_class_row"] == 20.0
    assert headline["held_back_recall_class_row"] == 0.7
    assert headline["held_back_good_lost_class_row"] == 0.02
    assert headline["held_back_apr_recovered_class_row"] == 0.381
    assert headline["held_back_ap_recovered_class_row"] == 0.381
    names = ("arms", "verdicts", "instances")
    assert set(tables({"rows": rows})) == {
        f"{one}{pool}" for one in names for pool in ("", "-second")
    }


def test_the_order_of_p_values_is_rated_at_a_fixed_loss_of_good_ones(tmp_path: Path) -> None:
    ids = [f"g{k}" for k in range(100)] + ["b0", "b1", "b2", "b3"]
    pool = StudyPool(
        name="any", folder=tmp_path, groups=dict.fromkeys(ids, "f"),
        planted=dict.fromkeys(ids[100:], "blur"),
    )  # fmt: skip
    p_values = {f"g{k}": (k + 1) / 100 for k in range(100)}
    p_values |= {"b0": 0.001, "b1": 0.02, "b2": 0.5, "b3": math.nan}

    assert recall_where_few_are_lost(p_values, pool) == 0.5
    assert recall_where_few_are_lost(p_values, pool, lost=0.6) == 0.75


def test_an_arm_that_keeps_a_share_comes_after_the_one_whose_share_it_keeps() -> None:
    assert in_order(["paste_random", "class_row"]) == ["class_row", "paste_random"]
    with pytest.raises(SystemExit, match="paste_random keeps the share that class_row keeps"):
        in_order(["paste_random", "none"])
    assert ARMS["exact_replace"] == ARMS["paste_clean"]


@pytest.mark.parametrize("arm", ARMS)
def test_the_settings_of_an_arm_are_settings_of_its_mode(arm: str) -> None:
    settings = [one.format(planted="planted.json") for one in ARMS[arm].settings]
    load_recipe("builtin_continue").override("paste.pool=pool", *settings)


@pytest.mark.slow
def test_a_stranger_gets_a_result_of_their_pool(
    stranger: Path, state: Path, tmp_path: Path
) -> None:
    (state / "quick").mkdir()
    (state / "quick" / "dataset").symlink_to(state / "dataset")
    out = tmp_path / "result.json"
    arms = ["paste_all", "paste_clean", "class_row"]
    command = [
        sys.executable, str(SCRIPT), "--quick", "--pool", str(stranger), "--state", str(state),
        "--out", str(out), "--threads", "1", "--seeds", "0", "--arms", *arms,
    ]  # fmt: skip
    before = sorted(path.name for path in stranger.rglob("*"))
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert sorted(path.name for path in stranger.rglob("*")) == before
    result = json.loads(out.read_text())
    rows = {row["arm"]: row for row in result["rows"] if row["seed"] == "all"}
    assert list(rows) == arms
    for arm, row in rows.items():
        assert {"ap", "apr", "apc", "apf"} <= row.keys(), arm
    for name in ("defect_recall", "recall_upside_down", "good_lost", "good_lost_r", "good_lost_f"):
        assert name in rows["class_row"], name
    assert rows["paste_clean"]["instance_recall_upside_down"] == 1.0
    assert rows["paste_clean"]["instance_good_lost"] == 0.0
    assert result["headline"]["held_back_recall_paste_clean"] == 1.0
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "'arm'" not in again.stdout, "a finished run was run again"
    refused = subprocess.run(
        [*command, "--steps", "3"], check=False, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "take another --state" in refused.stderr
