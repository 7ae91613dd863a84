from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest

from bsgal_train.recipe import Recipe
from bsgal_train.recipe.library import load_recipe, recipe_names


def test_override_returns_a_changed_copy_and_leaves_the_recipe_alone() -> None:
    recipe = Recipe()

    changed = recipe.override("schedule.n_steps=7", "data.scale_range=[0.5,2]", "data.train_json=x")

    assert (changed.schedule.n_steps, changed.data.scale_range) == (7, (0.5, 2.0))
    assert changed.data.train_json == "x"
    assert recipe == Recipe()


def test_unknown_key_raises_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"`schedule.n_step`; the nearest is `schedule.n_steps`"):
        Recipe().override("schedule.n_step=3")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("schedule.n_steps=many", "cannot read `many`"),
        ("schedule.n_steps=1.5", "takes int, got 1.5"),
        ("schedule.n_steps=true", "takes int, got True"),
        ("schedule.n_steps=0", "must be at least 1"),
        ("selection.mode=best", "must be one of none, paste_all, paste_random"),
        ("data.scale_range=[1,2,3]", "needs 2 values"),
        ("detector.fpn_channels=50", "multiple of 32"),
        ("schedule.n_steps", "is not of the form part.key=value"),
    ],
)
def test_bad_value_raises_naming_the_key(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe().override(assignment)


def test_a_pasting_mode_without_a_pool_raises() -> None:
    with pytest.raises(ValueError, match=r"set paste.pool"):
        Recipe().override("selection.mode=paper")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_saving(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    recipe.save(tmp_path / "recipe.json")

    assert load_recipe(str(tmp_path / "recipe.json")) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a saved recipe"),
        ('{"data": 3}', "`data` must be an object"),
        ('{"paste": {"pol": ""}}', "the nearest is `paste.pool`"),
    ],
)
def test_a_damaged_saved_recipe_raises(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(text)

    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path / "recipe.json")


def test_a_python_file_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from bsgal_train.recipe import Recipe\nrecipe = Recipe().override('schedule.seed=4')\n"
    )

    assert load_recipe(str(path)).schedule.seed == 4


def test_unknown_recipe_raises_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="the nearest is `coco_mini`"):
        load_recipe("coco-mini")


def test_every_field_is_described() -> None:
    for part in dataclasses.fields(Recipe):
        config = typing.get_type_hints(Recipe)[part.name]
        for field in dataclasses.fields(config):
            assert f"{field.name}:" in (config.__doc__ or ""), f"{part.name}.{field.name}"
