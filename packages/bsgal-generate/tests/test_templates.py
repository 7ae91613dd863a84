from __future__ import annotations

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from bsgal_generate import TEMPLATES, Category, GenerationPlan, PromptTemplate
from bsgal_generate._templates import fill_for_all
from bsgal_generate.cli import main
from bsgal_generate.errors import PromptError

FISH = Category(907, "salmon_(fish)", definition="a large food fish")
FOOD = Category(908, "salmon_(food)", definition="flesh of a fish")


def test_templates_of_the_papers_are_filled_as_the_papers_fill_them() -> None:
    assert TEMPLATES["single"].fill(FISH) == "a photo of a single salmon (fish)"
    assert TEMPLATES["divergen"].fill(FISH) == (
        "a photo of a single salmon (fish), a large food fish, in a white background"
    )


def test_registry_keys_are_the_prompt_ids() -> None:
    assert all(key == template.prompt_id for key, template in TEMPLATES.items())


def test_categories_that_would_share_a_prompt_get_their_sense_back() -> None:
    prompts = fill_for_all(TEMPLATES["single_noun"], [FISH, FOOD, Category(1, "hat_(head)")])
    assert prompts == {
        907: "a photo of a single salmon (fish)",
        908: "a photo of a single salmon (food)",
        1: "a photo of a single hat",
    }


def test_categories_with_equal_names_in_words_get_their_definition() -> None:
    pair = [Category(1, "top_hat", definition="tall"), Category(2, "top hat", definition="flat")]
    prompts = fill_for_all(TEMPLATES["single"], pair)
    assert prompts == {
        1: "a photo of a single top hat, tall",
        2: "a photo of a single top hat, flat",
    }


def test_categories_that_cannot_be_told_apart_are_an_error() -> None:
    pair = [Category(1, "top_hat"), Category(2, "Top hat")]
    with pytest.raises(PromptError, match=r"1 \('top_hat'\) and 2 \('Top hat'\) would share"):
        fill_for_all(TEMPLATES["single"], pair)


def test_missing_definition_is_named() -> None:
    with pytest.raises(PromptError, match=r"needs a definition, and category 5 \('cup'\) has none"):
        TEMPLATES["divergen"].fill(Category(5, "cup"))


@pytest.mark.parametrize(
    ("prompt_id", "text", "message"),
    [
        ("../up", "a {name}", "`prompt_id` must consist of"),
        ("A", "a {name}", "`prompt_id` must consist of"),
        ("a", "a {name", "cannot be parsed"),
        ("a", "a {colour} {name}", "unknown gap {colour}"),
        ("a", "a thing", "must contain {name} or {noun}"),
        ("a", "a {name.__class__}", "unknown gap"),
    ],
)
def test_bad_templates_are_refused(prompt_id: str, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        PromptTemplate(prompt_id, text)


@pytest.fixture(scope="module")
def lvis_categories() -> tuple[Category, ...]:
    spec = find_spec("detectron2")
    if spec is None or spec.origin is None:
        pytest.skip("the table of LVIS categories comes with detectron2, which is not installed")
    table = Path(spec.origin).parent / "data/datasets/lvis_v1_categories.py"
    assignment = next(n for n in ast.parse(table.read_text()).body if isinstance(n, ast.Assign))
    entries = ast.literal_eval(assignment.value)
    return tuple(Category(e["id"], e["name"], tuple(e["synonyms"]), e["def"]) for e in entries)


@pytest.mark.parametrize("name", TEMPLATES)
def test_all_lvis_categories_have_prompts_and_path_safe_ids_of_their_own(
    name: str, lvis_categories: tuple[Category, ...]
) -> None:
    plan = GenerationPlan(
        categories=lvis_categories, images_per_category=2, templates=(TEMPLATES[name],)
    )
    samples = list(plan)
    assert len(samples) == len(plan) == 2 * 1203
    assert len({sample.prompt.casefold() for sample in samples}) == 1203
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert len({sample.seed for sample in samples}) == len(samples)
    assert all(re.fullmatch(r"[a-z0-9_-]+", sample.sample_id) for sample in samples)


def test_command_plans_all_lvis_categories(
    lvis_categories: tuple[Category, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = tmp_path / "lvis.json"
    entries = [
        {"id": c.category_id, "name": c.name, "synonyms": c.synonyms, "def": c.definition}
        for c in lvis_categories
    ]
    annotations.write_text(json.dumps({"images": [], "annotations": [], "categories": entries}))
    command = ["plan", "--categories", str(annotations), "--images-per-category", "2"]
    assert main([*command, "--template", "divergen", "--list"]) == 0
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({sample["sample_id"] for sample in samples}) == 2 * 1203
    assert {sample["category_id"] for sample in samples} == {c.category_id for c in lvis_categories}
    assert main(command) == 0
    assert "2406 images of 1203 categories, 1203 prompts" in capsys.readouterr().out


def test_lvis_salmon_stays_two_things(lvis_categories: tuple[Category, ...]) -> None:
    prompts = fill_for_all(TEMPLATES["single_noun"], lvis_categories)
    assert prompts[907] == "a photo of a single salmon (fish)"
    assert prompts[908] == "a photo of a single salmon (food)"
