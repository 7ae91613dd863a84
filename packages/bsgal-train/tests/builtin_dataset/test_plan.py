from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES
from bsgal_train.builtin_dataset.plan import plan_images, train_image_counts, val_image_counts


@pytest.mark.parametrize("seed", range(20))
def test_every_category_is_in_exactly_its_number_of_images(seed: int) -> None:
    counts = train_image_counts()
    plan = plan_images(np.random.default_rng(seed), counts, 600)
    assert Counter(category_id for image in plan for category_id in image) == counts
    assert all(len(image) == len(set(image)) for image in plan)


@pytest.mark.parametrize("seed", range(20))
def test_every_image_has_a_category_and_none_is_overfull(seed: int) -> None:
    plan = plan_images(np.random.default_rng(seed), train_image_counts(), 600)
    assert min(len(image) for image in plan) >= 1
    assert max(len(image) for image in plan) <= 10


def test_a_category_can_be_in_every_image() -> None:
    plan = plan_images(np.random.default_rng(0), {1: 5, 2: 1}, 5)
    assert all(1 in image for image in plan)


def test_more_images_than_occurrences_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 in all, got at most 1 and 2 in all"):
        plan_images(np.random.default_rng(0), {1: 1, 2: 1}, 3)


def test_category_in_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 each"):
        plan_images(np.random.default_rng(0), {1: 4}, 3)


def test_validation_holds_every_category_at_least_eight_times() -> None:
    counts = val_image_counts()
    assert set(counts) == {item.category_id for item in BUILTIN_CATEGORIES}
    assert min(counts.values()) >= 8
