from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsgal_train.engine.run import train
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.selection.modes.listed import read_ids


@pytest.mark.parametrize("as_object", [False, True])
def test_ids_are_a_list_or_the_keys_of_an_object(tmp_path: Path, as_object: bool) -> None:
    ids = ["127-0004", "3-0001"]
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(dict.fromkeys(ids, "noise") if as_object else ids))
    assert read_ids(path) == set(ids)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, r"ids\.json cannot be read \(No such file"),
        ("[", r"ids\.json is not JSON"),
        ("[1]", r"ids\.json holds something else: give a JSON list of instance ids"),
        ('"127-0004"', "holds something else"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "ids.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_ids(path)


def test_the_mode_needs_a_file() -> None:
    with pytest.raises(ValueError, match=r"selection\.mode=listed needs selection\.rejected_ids"):
        Recipe().override("paste.pool=pool", "selection.mode=listed")


def test_exactly_what_is_named_is_rejected_and_naming_nothing_is_paste_all(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    path = tmp_path / "ids.json"
    listed = tiny_recipe.override("selection.mode=listed", f"selection.rejected_ids={path}")
    path.write_text("[]")
    train(listed, tmp_path / "nothing")
    train(tiny_recipe.override("selection.mode=paste_all"), tmp_path / "all")
    weights = {
        run: (tmp_path / run / "detector.safetensors").read_bytes() for run in ("nothing", "all")
    }
    assert weights["nothing"] == weights["all"]

    drawn = read_decisions(tmp_path / "nothing" / "decisions")["instance_id"].to_pylist()
    path.write_text(json.dumps({drawn[0]: "noise"}))
    train(listed, tmp_path / "one")
    log = read_decisions(tmp_path / "one" / "decisions").to_pylist()
    assert [row["instance_id"] for row in log] == drawn
    for row in log:
        assert (row["verdict"] == "reject") == (row["instance_id"] == drawn[0])
    assert (tmp_path / "one" / "detector.safetensors").read_bytes() != weights["all"]
