from __future__ import annotations

import re
from collections import Counter

from bsgal_train.builtin_dataset.categories import (
    BUILTIN_CATEGORIES,
    MAX_COMMON_IMAGES,
    MAX_RARE_IMAGES,
)

# Normalised names shared with COCO, so that a pool of these categories serves on its photographs.
COCO_NAMES = {
    "airplane",
    "backpack",
    "banana",
    "bear",
    "book",
    "broccoli",
    "bus",
    "cake",
    "car",
    "carrot",
    "clock",
    "donut",
    "elephant",
    "kite",
    "orange",
    "pizza",
    "sandwich",
    "stop sign",
    "suitcase",
    "teddy bear",
    "traffic light",
    "umbrella",
}


def normalised(name: str) -> str:
    return re.sub(r"_?\([^)]*\)$", "", name.lower()).replace("_", " ").strip()


def test_ids_and_names_are_unique_and_ordered() -> None:
    ids = [category.category_id for category in BUILTIN_CATEGORIES]
    names = {normalised(category.name) for category in BUILTIN_CATEGORIES}
    assert ids == sorted(set(ids))
    assert len(names) == len(ids) == 40


def test_no_name_belongs_to_two_categories() -> None:
    uses = Counter(normalised(n) for category in BUILTIN_CATEGORIES for n in category.synonyms)
    assert max(uses.values()) == 1


def test_every_frequency_group_is_filled_within_its_limits() -> None:
    groups = Counter(category.frequency for category in BUILTIN_CATEGORIES)
    assert groups == {"r": 10, "c": 14, "f": 16}
    for category in BUILTIN_CATEGORIES:
        count = category.image_count_target
        assert (category.frequency == "r") == (1 <= count <= MAX_RARE_IMAGES)
        assert (category.frequency == "f") == (count > MAX_COMMON_IMAGES)


def test_the_tail_is_long() -> None:
    counts = [category.image_count_target for category in BUILTIN_CATEGORIES]
    assert min(counts) == 1
    assert sum(count > 100 for count in counts) >= 4


def test_coco_shares_categories_from_every_group() -> None:
    shared = [
        category
        for category in BUILTIN_CATEGORIES
        if {normalised(name) for name in category.synonyms} & COCO_NAMES
    ]
    assert len(shared) == len(COCO_NAMES)
    assert Counter(category.frequency for category in shared)["r"] >= 3
