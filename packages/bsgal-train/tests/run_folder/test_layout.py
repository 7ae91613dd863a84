from __future__ import annotations

import re
from pathlib import Path

import pytest

import bsgal_train
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.layout import (
    CHECKPOINT,
    DECISIONS_PART,
    RunFolder,
    StepName,
    differing,
    differing_settings,
    read_json,
    write_json,
    write_text,
    written_whole,
)

SOURCES = Path(bsgal_train.__file__).parent
# Names that mean a file of a run's folder wherever they are spelled as one.
OWN_NAMES = (
    *("recipe.json", "provenance.json", "metrics.jsonl", "results.json", "report.html"),
    *("detector.safetensors", "detector.json", "model.safetensors", "state.pt", "sha256.json"),
)
OWN_FOLDERS = ("checkpoints", "decisions", "nonfinite", "predictions", "tensorboard")


def spelled(text: str) -> list[str]:
    """Return the names of a run's files and folders that a program makes paths of."""
    names, folders = ("|".join(map(re.escape, one)) for one in (OWN_NAMES, OWN_FOLDERS))
    return re.findall(
        rf"/ \"(?:{names}|{folders})|^[A-Z_]+ = \"(?:{names}|{folders})\"", text, re.M
    )


def test_no_other_module_spells_a_name_of_the_run_folder() -> None:
    found = {
        str(path.relative_to(SOURCES)): spelled(path.read_text(encoding="utf-8"))
        for path in SOURCES.rglob("*.py")
    }

    assert [path for path, names in found.items() if names] == ["run_folder/layout.py"]


def test_files_are_named_as_documentation_says() -> None:
    formats = Path(__file__).parents[4] / "docs/explanation/formats.md"
    section = formats.read_text(encoding="utf-8").split("## A run's folder")[1].split("\n## ")[0]
    described = set(re.findall(r"`([\w.]+?)(?:/[^`]*)?`", "".join(section.split("\n|")[3:])))

    properties = [name for name, one in vars(RunFolder).items() if isinstance(one, property)]
    made = {getattr(RunFolder(Path("run")), name).name for name in properties}

    assert made - described == set()


@pytest.mark.parametrize("name", [CHECKPOINT, DECISIONS_PART])
def test_a_name_tells_its_step(name: StepName, tmp_path: Path) -> None:
    for step in (200, 3):
        (tmp_path / name.of(step)).touch()
    (tmp_path / f"{name.of(4)}.tmp").touch()

    assert [name.step(path.name) for path in name.paths(tmp_path)] == [3, 200]
    assert name.step("something else") is None
    assert name.paths(tmp_path / "nowhere") == []


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def cut_off() -> None:
        with written_whole(path) as temporary:
            temporary.write_text('{"a"')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()

    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_json_file_that_is_not_there_is_none_and_another_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_json(path) is None

    write_text(path, '{"a"')
    with pytest.raises(ValueError, match=r"file\.json cannot be read"):
        read_json(path)
    write_text(path, "[]")
    with pytest.raises(ValueError, match=r"file\.json does not hold a JSON object"):
        read_json(path)


def test_what_differs_is_told_by_dotted_keys() -> None:
    a = {"one": {"x": 1, "y": 2}, "same": [1]}
    b = {"one": {"x": 1, "y": 3}, "same": [1], "more": {"z": 0}}

    assert differing(a, b) == {"one.y": (2, 3), "more.z": (None, 0)}
    assert differing(None, b) == {"one.x": (None, 1), "one.y": (None, 3), "same": (None, [1]),
                                  "more.z": (None, 0)}  # fmt: skip


def test_settings_that_change_no_number_do_not_differ() -> None:
    recipe = Recipe()

    other = recipe.override("checkpoint.every=7", "data.n_workers=1", "schedule.seed=3")

    assert differing_settings(recipe, other) == {"schedule.seed": (0, 3)}
