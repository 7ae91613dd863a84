from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.recipe import Recipe, SelectionConfig
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


def test_settings_left_to_the_mode_are_resolved() -> None:
    def resolved(**options: Any) -> tuple[float, float, tuple[str, ...]]:
        config = SelectionConfig(**options)
        return config.effective_threshold, config.effective_decay, config.effective_losses

    assert resolved(mode="paper") == (-0.05, 0.1, ("cls",))
    assert resolved(mode="instance")[2] == ("cls",)
    assert resolved(mode="instance", reference="hybrid")[2] == ("cls", "box", "mask")
    assert resolved(mode="image") == (-0.05, 0.9, ("cls", "box", "mask"))
    assert resolved(mode="instance", form="step")[0] == 0.0
    assert resolved(mode="oracle")[0] == 0.0
    assert resolved(mode="batch", threshold=0.2, decay=0.5, losses=("box",)) == (0.2, 0.5, ("box",))


def test_the_reference_follows_the_mode_and_the_policy_the_reference() -> None:
    def resolved(**options: Any) -> tuple[str, str]:
        config = SelectionConfig(**options)
        return config.effective_reference, config.effective_policy

    assert resolved(mode="instance") == ("own_class", "like_real")
    assert resolved(mode="instance", threshold=0.5) == ("own_class", "fixed")
    assert resolved(mode="instance", policy="quantile") == ("own_class", "quantile")
    assert resolved(mode="instance", form="step") == ("in_batch", "fixed")
    assert resolved(mode="instance", reference="hybrid") == ("hybrid", "fixed")
    assert resolved(mode="image") == ("in_batch", "fixed")


def test_optional_settings_are_overridden_and_saved() -> None:
    recipe = Recipe().override("selection.threshold=0.25", 'selection.losses=["cls","mask"]')
    assert recipe.selection.threshold == 0.25
    assert recipe.selection.losses == ("cls", "mask")
    assert recipe.override("selection.threshold=null").selection.threshold is None
    chosen = recipe.override("selection.reference=hybrid")
    assert chosen.selection.reference == "hybrid"
    assert chosen.override("selection.reference=null").selection.reference is None
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["selection.threshold=3"], r"is a cosine, in \[-1, 1\]"),
        (["selection.threshold=true"], "takes float, got True"),
        (["selection.decay=1"], r"decay must be in \[0, 1\)"),
        (["selection.decay=0.99", "selection.cache_dtype=bf16"], r"at most 0\.9, got 0\.99"),
        (["selection.kept_share=1.5"], r"must be in \[0, 1\]"),
        (["selection.refresh_every=0"], "at least 1"),
        (['selection.losses=["cls","cls"]'], "names a loss twice"),
        (['selection.losses=["class"]'], "must be one of cls, box, mask"),
        (["selection.threshold_by_group=[0.1]"], "needs three values, for r, c and f"),
        (["selection.per_group=true"], "selection.mode=instance"),
        (["selection.mode=instance", "selection.layers=heads"], "selection.reference=in_batch"),
        (["selection.refrence=hybrid"], "the nearest is `selection.reference`"),
    ],
)
def test_a_bad_selection_is_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe().override(*assignments)
