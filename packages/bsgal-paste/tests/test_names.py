from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from bsgal_paste import (
    AnnotationError,
    InstancePool,
    NoCommonCategoryError,
    normalise_category_name,
)


@pytest.mark.parametrize(
    ("name", "normalised"),
    [
        ("Salmon_(fish)", "salmon"),
        ("  Fire__Hydrant ", "fire hydrant"),
        ("bow_(decorative_ribbons)", "bow"),
        ("hinge", "hinge"),
        ("(fish)_tank", "(fish) tank"),
    ],
)
def test_names_are_normalised(name, normalised):
    assert normalise_category_name(name) == normalised
    assert normalise_category_name(normalised) == normalised


def pool_of(names: dict[int, str]) -> InstancePool:
    rgba = np.full((4, 4, 4), 255, dtype=np.uint8)
    return InstancePool.from_arrays(
        [rgba] * len(names), list(names), category_names=names,
        instance_ids=[f"of {name}" for name in names.values()],
    )  # fmt: skip


def lvis(*names: str, **synonyms: list[str]) -> list[dict]:
    return [
        {"id": 100 + i, "name": name, "synonyms": synonyms.get(name, [])}
        for i, name in enumerate(names)
    ]


def test_match_gives_the_ids_of_the_annotations_and_their_names():
    matched = pool_of({5: "fire_hydrant", 9: "zebra"}).match(lvis("zebra", "fire hydrant"))
    assert matched.category_names == {100: "zebra", 101: "fire hydrant"}
    assert [matched.read(i).instance_id for i in range(2)] == ["of zebra", "of fire_hydrant"]
    assert [matched.read(i).category_id for i in range(2)] == [100, 101]


def test_match_uses_synonyms():
    matched = pool_of({1: "couch"}).match(lvis("sofa", sofa=["sofa", "Couch"]))
    assert matched.category_ids.tolist() == [100]


def test_a_full_name_wins_over_a_normalised_one_so_senses_stay_apart():
    pool = pool_of({1: "salmon_(fish)", 2: "salmon_(food)"})
    matched = pool.match(lvis("salmon_(food)", "salmon_(fish)"))
    assert matched.instance_id(matched.positions_of(100)[0]) == "of salmon_(food)"
    assert matched.instance_id(matched.positions_of(101)[0]) == "of salmon_(fish)"


def test_two_pool_categories_can_share_one_annotation_category():
    matched = pool_of({1: "salmon_(fish)", 2: "salmon_(food)"}).match(lvis("salmon"))
    assert matched.counts.tolist() == [2]
    assert matched.category_ids_of([0, 1]).tolist() == [100, 100]


def test_an_ambiguous_or_unknown_name_is_left_out_and_reported(caplog):
    pool = pool_of({1: "salmon", 2: "zebra", 3: "unicorn"})
    matched = pool.match(lvis("salmon_(fish)", "salmon_(food)", "zebra"))
    assert matched.category_names == {102: "zebra"}
    assert matched.card().unmatched == ("salmon", "unicorn")
    assert "2 of 3 pool categories" in caplog.text


def test_nothing_in_common_is_an_error_that_shows_both_sides():
    with pytest.raises(NoCommonCategoryError, match=r"'unicorn'.*'zebra', 'ape'"):
        pool_of({3: "unicorn"}).match(lvis("zebra", "ape"))


def test_two_categories_of_one_name_are_called_ambiguous():
    categories = [{"id": 4, "name": "zebra"}, {"id": 9, "name": "zebra"}]
    with pytest.raises(NoCommonCategoryError, match=r"'zebra' is ambiguous: .* 4, 9 alike"):
        pool_of({3: "zebra"}).match(categories)


def test_a_matched_pool_can_be_matched_again():
    once = pool_of({1: "couch", 2: "zebra"}).match(lvis("zebra", "sofa", sofa=["couch"]))
    twice = once.match([{"id": 7, "name": "sofa"}, {"id": 3, "name": "zebra"}])
    assert twice.category_names == {3: "zebra", 7: "sofa"}
    assert twice.instance_id(twice.positions_of(7)[0]) == "of couch"


def test_category_objects_are_taken_as_well():
    @dataclass
    class Category:
        category_id: int
        name: str
        synonyms: tuple[str, ...]

    matched = pool_of({1: "couch"}).match([Category(8, "sofa", ("couch",))])
    assert matched.category_ids.tolist() == [8]


def test_a_category_without_a_name_is_refused():
    with pytest.raises(AnnotationError, match="needs `id` and `name`"):
        pool_of({1: "couch"}).match([{"id": 1}])


def test_every_lvis_name_matches_itself(coco_mini):
    categories = json.loads((coco_mini.parent / "lvis_val_100.json").read_text())["categories"]
    # That sample predates LVIS v1 and holds a few names twice.
    unique = list({category["name"]: category for category in categories}.values())
    pool = pool_of({category["id"]: category["name"] for category in unique})
    matched = pool.match(unique)
    assert matched.card().unmatched == ()
    assert matched.category_ids.tolist() == sorted(category["id"] for category in unique)


@pytest.mark.parametrize(
    ("pool_name", "names", "synonyms"),
    [
        ("bow_(weapon)", ("bow_(decorative_ribbons)",), {}),
        ("mouse_(animal)", ("mouse_(computer)",), {}),
        ("mailbox_(at_home)", ("postbox",), {"postbox": ["mailbox_(public)"]}),
        ("horse", ("knight",), {"knight": ["horse_(chess_piece)"]}),
        ("fish", ("fish_(food)",), {}),
        ("fish_(food)", ("fish",), {}),
    ],
)
def test_another_sense_does_not_match(pool_name, names, synonyms):
    with pytest.raises(NoCommonCategoryError):
        pool_of({1: pool_name}).match(lvis(*names, **synonyms))


def test_two_names_that_the_pool_tells_apart_are_two_things():
    pool = pool_of({1: "glass", 2: "glass_(drink)"})
    matched = pool.match(lvis("glass_(drink)"))
    assert matched.instance_id(0) == "of glass_(drink)"
    assert matched.card().unmatched == ("glass",)
    matched = pool.match(lvis("glass"))
    assert matched.instance_id(0) == "of glass"
    assert matched.card().unmatched == ("glass_(drink)",)


def test_every_match_by_less_than_the_name_is_logged(caplog):
    pool = pool_of({1: "ball", 2: "couch", 3: "zebra"})
    pool.match(lvis("ball_(toy)", "sofa", "zebra", sofa=["couch"]))
    assert [record.getMessage() for record in caplog.records] == [
        "the pool's 'ball' stands for the annotations' 'ball_(toy)' "
        "(matched by sense, not by name)",
        "the pool's 'couch' stands for the annotations' 'sofa' (matched by synonym, not by name)",
    ]


@pytest.mark.parametrize(
    ("categories", "error", "message"),
    [
        (None, TypeError, "`categories` must be"),
        ("zebra", TypeError, "`categories` must be"),
        ([5], TypeError, "must be a mapping or a category object"),
        ([{"id": 2**70, "name": "zebra"}], AnnotationError, "integer of at least 0, got 118"),
        ([{"id": True, "name": "zebra"}], AnnotationError, "integer of at least 0, got True"),
        ([{"id": 1, "name": 7}], AnnotationError, "the name must be text, got 7"),
        ([{"id": 1, "name": "a", "synonyms": "b"}], AnnotationError, "must be a list of texts"),
        ([{"id": 1, "name": "a", "synonyms": None}], AnnotationError, "must be a list of texts"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], AnnotationError, "have one id"),
    ],
)
def test_malformed_categories_are_refused(categories, error, message):
    with pytest.raises(error, match=message):
        pool_of({1: "zebra"}).match(categories)
