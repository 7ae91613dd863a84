"""Which settings of the selection go together, and what becomes of those that do not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.engine.run import train
from bsgal_train.recipe import Recipe, SelectionConfig
from bsgal_train.recipe.library import load_recipe
from bsgal_train.recipe.modes import MODES


def pasting(*assignments: str) -> Recipe:
    return Recipe().override("paste.pool=pool", *[f"selection.{one}" for one in assignments])


def test_settings_left_to_the_mode_are_resolved() -> None:
    def resolved(**options: Any) -> tuple[float, float, tuple[str, ...]]:
        config = SelectionConfig(**options)
        return config.effective_threshold, config.effective_decay, config.effective_losses

    assert resolved(mode="paper") == (-0.05, 0.1, ("cls",))
    assert resolved(mode="instance", reference="own_class")[2] == ("cls",)
    assert resolved(mode="instance", reference="hybrid")[2] == ("cls", "box", "mask")
    assert resolved(mode="image") == (-0.05, 0.9, ("cls", "box", "mask"))
    assert resolved(mode="instance", form="step")[0] == 0.0
    assert resolved(mode="oracle")[0] == 0.0
    assert resolved(mode="batch", threshold=0.2, decay=0.5, losses=("box",)) == (0.2, 0.5, ("box",))


def test_the_reference_follows_the_mode_and_the_policy_the_reference() -> None:
    def resolved(**options: Any) -> tuple[str, str]:
        config = SelectionConfig(**options)
        return config.effective_reference, config.effective_policy

    assert resolved(mode="instance") == ("evidence", "level")
    assert resolved(mode="instance", reference="own_class") == ("own_class", "like_real")
    assert resolved(mode="instance", policy="like_real") == ("own_class", "like_real")
    assert resolved(mode="instance", threshold=0.5) == ("own_class", "fixed")
    assert resolved(mode="instance", policy="quantile") == ("own_class", "quantile")
    assert resolved(mode="instance", form="step") == ("in_batch", "fixed")
    assert resolved(mode="instance", reference="hybrid") == ("hybrid", "fixed")
    assert resolved(mode="image") == ("in_batch", "fixed")


def test_optional_settings_are_overridden_and_saved() -> None:
    recipe = pasting("mode=image", "threshold=0.25", 'losses=["cls","mask"]')
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
        (["mode=best"], "must be one of none, paste_all, paste_random"),
        (["mode=paper", "threshold=3"], r"is a cosine, in \[-1, 1\]"),
        (["mode=paper", "threshold=true"], "takes float, got True"),
        (["mode=paper", "decay=1"], r"decay must be in \[0, 1\)"),
        (["mode=image", "decay=0.99", "cache_dtype=bf16"], r"at most 0\.9, got 0\.99"),
        (["mode=paste_random", "kept_share=1.5"], r"must be in \[0, 1\]"),
        (["mode=instance", "reference=own_class", "real_kept_share=1.5"], r"must be in \[0, 1\]"),
        (["mode=instance", "images_per_class=-1"], "images_per_class must be >= 0"),
        (["mode=batch", "refresh_every=0"], "at least 1"),
        (["mode=image", 'losses=["cls","cls"]'], "names a loss twice"),
        (["mode=image", 'losses=["class"]'], "must be one of cls, box, mask"),
        (["mode=instance", "threshold_by_group=[0.1]"], "needs three values, for r, c and f"),
        (["mode=instance", "alpha=1"], r"alpha must lie in \(0, 1\)"),
        (["mode=instance", "min_looks=9"], r"min_looks must lie in \[1, selection.max_looks\]"),
        (["mode=instance", "sources=[]"], "must be some of prototype, real_prototype, cls_loss"),
        (["mode=instance", 'sources=["outline","outline"]'], "each once"),
        (["mode=instance", "publish_every=0"], "publish_every must be at least 1"),
        (["refrence=hybrid"], "the nearest is `selection.reference`"),
        (["mode=image", "reference=own_class"], "choose in_batch, class_matched or hybrid"),
        (
            ["mode=instance", "policy=like_real", "reference=hybrid"],
            "choose fixed, quantile or schedule",
        ),
        (["mode=image", "policy=like_real"], "choose fixed, quantile"),
    ],
)
def test_a_bad_selection_is_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pasting(*assignments)


@pytest.mark.parametrize(
    ("assignments", "unused", "mended"),
    [
        (["mode=paste_all", "decay=0.1"], "mode=paper, batch, image or instance", "decay=null"),
        (["mode=paste_all", "kept_share=0.7"], "paste_random, paper, batch", "kept_share=0.5"),
        (["per_group=true"], "mode=instance or oracle", "per_group=false"),
        (["mode=paper", "layers=heads"], "mode=batch, image or instance", "layers=last"),
        (["mode=batch", "reference=own_class"], "for selection.mode=instance", "reference=null"),
        (["mode=oracle", "form=step"], "mode=paper, batch, image or instance", "form=cosine"),
        (["mode=image", "per_group=true"], "mode=instance or oracle", "per_group=false"),
        (
            ["mode=instance", "layers=heads"],
            "reference=in_batch, class_matched or hybrid",
            "layers=last",
        ),
        (
            ["mode=instance", "reference=own_class", "form=dot"],
            "reference=in_batch, class_matched or hybrid",
            "form=cosine",
        ),
        (["mode=image", "refresh_every=2"], "reference=class_matched or", "refresh_every=16"),
        (
            ["mode=instance", "kept_share=0.7"],
            "own_class, in_batch, class_matched",
            "kept_share=0.5",
        ),
        (["mode=instance", "threshold=0", "alpha=0.1"], "reference=evidence", "alpha=0.05"),
        (["mode=instance", "policy=quantile", "kept_share_end=1"], "=schedule", "kept_share_end"),
        (["mode=instance", "policy=like_real", "threshold=0"], "fixed, quantile", "threshold=null"),
        (["mode=image", "real_kept_share=0.5"], "for selection.mode=instance", "real_kept_share"),
    ],
)
def test_a_setting_without_effect_is_refused(
    assignments: list[str], unused: str, mended: str
) -> None:
    with pytest.raises(ValueError, match="has no use for selection") as refusal:
        pasting(*assignments)

    message = str(refusal.value)
    assert unused in message
    mend = message.rpartition("leave it out: ")[2]
    assert mended in mend
    if assignments[0].startswith("mode="):
        pasting(*assignments, *[one.removeprefix("selection.") for one in mend.split()])


def test_the_default_of_a_setting_without_effect_may_be_said() -> None:
    assert pasting("mode=paste_all", "kept_share=0.5").selection.mode == "paste_all"
    assert pasting("mode=batch", 'losses=["cls"]').selection.losses == ("cls",)


def test_another_mode_on_a_named_recipe_says_what_to_change() -> None:
    recipe = load_recipe("lvis_r50_bsgal_paper")

    with pytest.raises(ValueError, match="has no use for") as refusal:
        recipe.override("selection.mode=paste_all")

    assert "selection.decay=null selection.threshold=null" in str(refusal.value)
    changed = recipe.override(
        "selection.mode=paste_all", "selection.decay=null", "selection.threshold=null"
    )
    assert changed.selection == SelectionConfig(mode="paste_all")
    instance = load_recipe("lvis_r50_bsgal_instance")
    with pytest.raises(ValueError, match=r"leave it out: selection\.publish_every=10$"):
        instance.override("selection.mode=paper")
    paper = instance.override("selection.mode=paper", "selection.publish_every=10")
    assert paper.selection.effective_decay == 0.1


STORED = {"mode": "paste_all", "decay": 0.1, "losses": ["box"], "kept_share": 0.7}


def test_a_stored_recipe_loads_without_what_had_no_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = pasting("mode=paste_all").to_dict()
    stored["selection"] |= STORED
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(stored))

    assert load_recipe(str(path)) == pasting("mode=paste_all")
    assert (
        'had no effect: selection.losses=["box"], selection.decay=0.1, selection.kept_share=0.7'
        in caplog.text
    )


def test_a_run_begun_with_a_setting_without_effect_goes_on(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(
        "selection.mode=paste_all", "schedule.n_steps=1", "data.val_json="
    )
    train(recipe, tmp_path)
    path = tmp_path / "recipe.json"
    stored = json.loads(path.read_text())
    stored["selection"] |= STORED
    path.write_text(json.dumps(stored))

    train(recipe, tmp_path)

    assert json.loads(path.read_text()) == json.loads(json.dumps(recipe.to_dict()))


def test_a_stored_recipe_keeps_what_has_an_effect(caplog: pytest.LogCaptureFixture) -> None:
    recipe = pasting("mode=instance", "reference=hybrid", "layers=heads", "decay=0.5")

    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert not caplog.text


@pytest.mark.parametrize(("form", "reference"), [("cosine", "own_class"), ("step", "in_batch")])
def test_a_run_of_before_there_was_evidence_keeps_its_reference(form: str, reference: str) -> None:
    stored = pasting("mode=instance", f"reference={reference}", f"form={form}").to_dict()
    stored["selection"] = {
        name: value
        for name, value in stored["selection"].items()
        if name not in ("sources", "alpha", "evidence")
    }
    stored["selection"]["reference"] = None

    assert Recipe.from_dict(stored).selection.effective_reference == reference


def test_a_stored_value_that_makes_no_sense_is_refused() -> None:
    stored = pasting("mode=paste_random").to_dict()
    stored["selection"] |= {"kept_share": 2.0, "decay": 0.1}

    with pytest.raises(ValueError, match=r"kept_share.* must be in \[0, 1\]"):
        Recipe.from_dict(stored)


def test_every_setting_is_for_some_mode() -> None:
    used = {
        name for spec in MODES.values() for one in spec.choices() for name in spec.settings_of(*one)
    }

    assert used == {one.name for one in dataclasses.fields(SelectionConfig)}
