from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsgal_generate import Category, load_categories
from bsgal_generate.errors import CategoryFileError

ENTRIES = [
    {"id": 908, "name": "salmon_(food)", "synonyms": [], "def": "flesh of a fish "},
    {"id": 4, "name": "alligator", "synonyms": ["gator"], "def": "a reptile", "frequency": "r"},
]


@pytest.mark.parametrize(
    "content", [ENTRIES, {"images": [], "annotations": [], "categories": ENTRIES}]
)
def test_json_list_and_annotation_file_give_the_same_categories(
    content: object, tmp_path: Path
) -> None:
    path = tmp_path / "categories.json"
    path.write_text(json.dumps(content))
    assert load_categories(path) == (
        Category(4, "alligator", ("gator",), "a reptile"),
        Category(908, "salmon_(food)", (), "flesh of a fish"),
    )


def test_text_lines_are_numbered_from_one_without_blanks_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("# fruit\nbanana\n\n  hot-air_balloon \n")
    assert load_categories(path) == (Category(1, "banana"), Category(2, "hot-air_balloon"))


@pytest.mark.parametrize(
    ("name", "readable", "noun"),
    [
        ("salmon_(fish)", "salmon (fish)", "salmon"),
        ("hot-air_balloon", "hot-air balloon", "hot-air balloon"),
        ("monitor_(screen) display", "monitor (screen) display", "monitor"),
        ("(odd)", "(odd)", "(odd)"),
    ],
)
def test_names_are_turned_into_words(name: str, readable: str, noun: str) -> None:
    assert Category(1, name).readable_name == readable
    assert Category(1, name).noun == noun


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "must hold a list of categories"),
        ('{"images": []}', "must hold a list of categories"),
        ("[]", "no categories found"),
        ('[{"id": 1}]', 'category number 1: must be an object with "id" and "name"'),
        ('[{"id": "1", "name": "a"}]', "`category_id` must be an int from 0 to .*, got '1'"),
        ('[{"id": true, "name": "a"}]', "`category_id` must be an int"),
        ('[{"id": -1, "name": "a"}]', "must be an int from 0 to .*, got -1"),
        (f'[{{"id": {2**70}, "name": "a"}}]', "must be an int from 0 to 2"),
        ('[{"id": 1, "name": " "}]', "`name` must be a line of text that is not empty"),
        ('[{"id": 1, "name": 5}]', "`name` must be a line of text that is not empty, got 5"),
        ('[{"id": 1, "name": "a\\u0000"}]', "`name` must be a line of text that is not empty"),
        ('[{"id": 1, "name": "a\\ud800"}]', "`name` must be a line of text that is not empty"),
        ('[{"id": 1, "name": "a", "synonyms": "b"}]', '"synonyms" must be a list of names'),
        ('[{"id": 1, "name": "a", "synonyms": 0}]', '"synonyms" must be a list of names'),
        ('[{"id": 1, "name": "a", "synonyms": null}]', '"synonyms" must be a list of names'),
        ('[{"id": 1, "name": "a", "def": null}]', '"def" must be text'),
        ('[{"id": 1, "name": "a", "synonyms": [2]}]', '"synonyms" must be a list of names'),
        ('[{"id": 1, "name": "a", "def": 3}]', '"def" must be text'),
        ("[" * 100_000, "not valid JSON: it nests too deeply"),
        ('[{"id": 1' + "0" * 5000 + ', "name": "a"}]', "not valid JSON"),
        ('[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "id 1 is used by both 'a' and 'b'"),
        ('[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]', "belongs to both category 1 and"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "categories.json"
    path.write_text(content)
    with pytest.raises(CategoryFileError, match=message) as caught:
        load_categories(path)
    assert str(path) in str(caught.value)


def test_missing_and_undecodable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CategoryFileError, match="does not exist"):
        load_categories(tmp_path / "nothing.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CategoryFileError, match="cannot be read"):
        load_categories(tmp_path / "binary.txt")


@pytest.mark.parametrize("name", ["categories.json", "categories", "categories.txt"])
def test_json_is_known_by_its_content_and_a_mark_at_its_start_is_skipped(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    entries = [{"id": 0, "name": "apple"}, {"id": 2**63 - 1, "name": "bus"}]
    path.write_text("\ufeff" + json.dumps({"categories": entries}), encoding="utf-8")
    assert load_categories(path) == (Category(0, "apple"), Category(2**63 - 1, "bus"))
    path.write_text(json.dumps(entries))
    assert len(load_categories(path)) == 2


def test_mark_at_the_start_of_a_list_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeffapple\r\nbus\r\n", encoding="utf-8")
    assert [category.name for category in load_categories(path)] == ["apple", "bus"]


@pytest.mark.parametrize("line", ['"categories": [', '{"id": 1, "name": "apple"},', "ap\0ple", "]"])
def test_line_that_is_no_name_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text(f"pear\n{line}\n")
    with pytest.raises(CategoryFileError, match=r"names\.txt, line 2: a name must be a line"):
        load_categories(path)
