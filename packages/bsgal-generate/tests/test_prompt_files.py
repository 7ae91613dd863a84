from __future__ import annotations

from pathlib import Path

import pytest

from bsgal_generate import Category, GenerationPlan, load_prompts
from bsgal_generate.errors import PromptError

CATEGORIES = (Category(12, "apple"), Category(45, "banana"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "12.txt").write_text("# fruit\na red apple\n\n  an apple on a table \n")
    return tmp_path


def plan_with(prompts: dict[int, tuple[str, ...]], images_per_category: int = 4) -> GenerationPlan:
    return GenerationPlan(
        categories=CATEGORIES, images_per_category=images_per_category, prompts=prompts
    )


def test_lines_replace_the_templates_of_their_category(folder: Path) -> None:
    prompts = load_prompts(folder, CATEGORIES)
    assert prompts == {12: ("a red apple", "an apple on a table")}
    apples = [s.prompt for s in plan_with(prompts) if s.category_id == 12]
    assert apples == ["a red apple", "an apple on a table"] * 2
    bananas = {s.prompt for s in plan_with(prompts) if s.category_id == 45}
    assert bananas == {"a photo of a single banana"}


def test_samples_of_a_line_do_not_depend_on_the_other_lines() -> None:
    before = {s.sample_id: s for s in plan_with({12: ("a", "b")}, 2)}
    after = {s.sample_id: s for s in plan_with({12: ("c", "b", "a")}, 3)}
    assert before.keys() < after.keys()
    assert all(after[sample_id] == sample for sample_id, sample in before.items())


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({3: ("a",)}, "category id 3, which is not in the plan"),
        ({12: ()}, "category 12 must be non-empty strings"),
        ({12: (" ",)}, "category 12 must be non-empty strings"),
        ({12: ("a", "a")}, "'a' of category 12 is already one of category 12"),
        ({12: ("a",), 45: ("a",)}, "'a' of category 45 is already one of category 12"),
    ],
)
def test_bad_prompts_are_refused(prompts: dict[int, tuple[str, ...]], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        plan_with(prompts)


def test_bad_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="does not exist"):
        load_prompts(tmp_path / "nowhere", CATEGORIES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptError, match="holds no prompt file; they are named <category_id>"):
        load_prompts(tmp_path / "empty", CATEGORIES)
    (folder / "45.txt").write_text("# nothing\n")
    with pytest.raises(PromptError, match=r"45\.txt holds no prompt"):
        load_prompts(folder, CATEGORIES)
    (folder / "45.txt").write_bytes(b"\xff")
    with pytest.raises(PromptError, match=r"45\.txt cannot be read"):
        load_prompts(folder, CATEGORIES)
    (folder / "45.txt").write_text("a banana\nyellow\n a banana\n")
    with pytest.raises(PromptError, match=r"45\.txt, line 3: 'a banana' is already line 1"):
        load_prompts(folder, CATEGORIES)
    (folder / "45.txt").write_text("a\0banana\n")
    with pytest.raises(PromptError, match=r"45\.txt, line 1: control characters"):
        load_prompts(folder, CATEGORIES)
    (folder / "banana.txt").write_text("a banana")
    (folder / "45.txt").unlink()
    with pytest.raises(PromptError, match=r"banana\.txt: the file's name must be the id"):
        load_prompts(folder, CATEGORIES)


def test_mark_at_the_start_is_no_part_of_a_prompt(folder: Path) -> None:
    (folder / "45.txt").write_text("\ufeff# fruit\r\na banana\r\n", encoding="utf-8")
    assert load_prompts(folder, CATEGORIES)[45] == ("a banana",)
