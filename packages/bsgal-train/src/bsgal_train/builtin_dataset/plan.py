"""Decide which categories every image of the built-in data set holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES

__all__ = [
    "MIN_VAL_IMAGES_PER_CATEGORY",
    "plan_images",
    "train_image_counts",
    "val_image_counts",
]

MIN_VAL_IMAGES_PER_CATEGORY = 10

# Validation images of a category per training image, as far as the minimum allows.
_VAL_IMAGES_SHARE = 0.25


def train_image_counts() -> dict[int, int]:
    """Return for each category id in how many training images it occurs."""
    return {item.category_id: item.image_count_target for item in BUILTIN_CATEGORIES}


def val_image_counts() -> dict[int, int]:
    """Return for each category id in how many validation images it occurs."""
    return {
        category_id: max(MIN_VAL_IMAGES_PER_CATEGORY, round(n_train_images * _VAL_IMAGES_SHARE))
        for category_id, n_train_images in train_image_counts().items()
    }


def plan_images(
    rng: np.random.Generator, image_counts: Mapping[int, int], n_images: int
) -> list[list[int]]:
    """Give every category exactly its number of images, and every image at least one category.

    How many categories an image holds varies as if they were thrown into the images at random.

    Args:
        rng: Source of randomness.
        image_counts: For each category id the number of images it occurs in.
        n_images: Number of images; at most the sum of `image_counts`.

    Returns:
        For each image its category ids, ascending.

    Raises:
        ValueError: A category is to be in more images than there are, or there are too few
            occurrences to fill every image.
    """
    n_occurrences = sum(image_counts.values())
    if max(image_counts.values()) > n_images or n_occurrences < n_images:
        raise ValueError(
            f"`image_counts` must be at most {n_images} each and at least {n_images} in all, got "
            f"at most {max(image_counts.values())} and {n_occurrences} in all"
        )
    # How many categories each image still wants.
    vacancies = np.ones(n_images, dtype=np.int64)
    vacancies += rng.multinomial(n_occurrences - n_images, np.full(n_images, 1 / n_images))
    plan: list[list[int]] = [[] for _ in range(n_images)]
    # The most frequent category first, because it needs the most images with a vacancy.
    for category_id in sorted(image_counts, key=lambda item: (-image_counts[item], item)):
        for index in _weighted_choice(rng, vacancies, image_counts[category_id]):
            plan[index].append(category_id)
            vacancies[index] -= 1
    return [sorted(category_ids) for category_ids in plan]


def _weighted_choice(
    rng: np.random.Generator, vacancies: np.typing.NDArray[np.int64], n_chosen: int
) -> list[int]:
    """Choose different images, each with a probability that grows with its vacancies."""
    # The largest of log(u) / weight are a weighted sample without replacement (Efraimidis and
    # Spirakis, 2006); images without a vacancy come last and are taken only if all others are.
    scores = np.log(rng.random(len(vacancies))) / np.maximum(vacancies, 1e-9)
    return [int(index) for index in np.argsort(-scores, kind="stable")[:n_chosen]]
