from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bsgal_generate import (
    SCENE_PROMPTS,
    Category,
    GenerationPlan,
    ImagePipeline,
    ImageSet,
    generate,
    scene_plan,
)
from bsgal_generate.cli import main
from bsgal_generate.errors import PromptError


def test_scenes_take_turns_and_are_marked_as_such(
    make_stub: Callable[..., tuple[ImagePipeline, Any]], tmp_path: Path
) -> None:
    plan = scene_plan(len(SCENE_PROMPTS) + 2, negative_prompt="people")
    generate(plan, make_stub()[0], tmp_path)
    rows = list(ImageSet.open(tmp_path))
    assert [row.prompt for row in rows] == [*SCENE_PROMPTS, *SCENE_PROMPTS[:2]]
    assert {(row.kind, row.category_id, row.category_name) for row in rows} == {
        ("scene", 0, "scene")
    }
    assert {sample.kind for sample in plan} == {"scene"}
    assert len({row.seed for row in rows}) == len(rows)


def test_category_0_is_a_category_like_any_other(
    make_stub: Callable[..., tuple[ImagePipeline, Any]], tmp_path: Path
) -> None:
    plan = GenerationPlan(
        categories=(Category(0, "scene"), Category(1, "apple")), images_per_category=1
    )
    assert {sample.kind for sample in plan} == {"object"}
    rows = list(generate(plan, make_stub()[0], tmp_path))
    assert [(row.category_id, row.kind) for row in rows] == [(0, "object"), (1, "object")]


def test_set_of_version_0_1_has_scenes_where_the_id_is_0(
    make_stub: Callable[..., tuple[ImagePipeline, Any]], tmp_path: Path
) -> None:
    generate(scene_plan(2), make_stub()[0], tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert {row.pop("kind") for row in rows} == {"scene"}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row.kind for row in ImageSet.open(tmp_path)} == {"scene"}
    # Such a set is continued as it was begun.
    continued = generate(scene_plan(3), make_stub()[0], tmp_path)
    assert [row.kind for row in continued] == ["scene"] * 3


def test_bad_scene_prompts_are_refused() -> None:
    with pytest.raises(PromptError, match="every prompt must be given once"):
        scene_plan(1, prompts=["a wall", "a wall"])
    with pytest.raises(ValueError, match="must be an int of at least 1, got 0"):
        scene_plan(0)


def test_command_lists_built_in_and_own_scenes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--scenes", "--images-per-category", "30"]) == 0
    assert f"30 images of 1 categories, {len(SCENE_PROMPTS)} prompts" in capsys.readouterr().out
    own = tmp_path / "scenes.txt"
    own.write_text("# mine\na bare wall\n")
    command = ["plan", "--scenes", str(own), "--images-per-category", "2", "--list"]
    assert main(command) == 0
    assert capsys.readouterr().out.count('"prompt": "a bare wall"') == 2
    assert main([*command, "--template", "single"]) == 1
    assert "are for categories" in capsys.readouterr().err
