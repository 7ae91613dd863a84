"""Weights of categories for `CategoryWeightedSampler`, measured on annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bsgal_paste._arrays import FloatArray, IntArray
from bsgal_paste._lvis import load_lvis


@dataclass(frozen=True, slots=True)
class FrequencyGroups:
    """Weigh the categories of some frequency groups equally, and no others.

    Attributes:
        frequencies: Group of each category id: `r`, `c` or `f`.
        groups: The groups to draw from, such as `("r",)` or `("r", "c")`.
    """

    frequencies: Mapping[int, str]
    groups: Sequence[str]

    @classmethod
    def from_annotations(
        cls, lvis: Mapping[str, Any] | str | Path, groups: Sequence[str]
    ) -> FrequencyGroups:
        """Read the groups from an LVIS v1 file, given parsed or as a path.

        Raises:
            AnnotationError: The file is no LVIS JSON.
            ValueError: No category of the file is in one of `groups`.
        """
        frequencies = {
            int(category["id"]): str(category.get("frequency"))
            for category in load_lvis(lvis).categories
        }
        if not set(groups) & set(frequencies.values()):
            raise ValueError(
                f"no category is in one of the groups {list(groups)}; the annotations have "
                f"{sorted(set(frequencies.values()))}"
            )
        return cls(frequencies, tuple(groups))

    def __call__(self, category_ids: IntArray, target_category_ids: IntArray) -> FloatArray:
        """Give 1 for categories of the groups, else 0."""
        wanted = [self.frequencies.get(int(i)) in self.groups for i in category_ids]
        return np.array(wanted, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RepeatFactors:
    """Weigh each category by its repeat factor max(1, sqrt(threshold / share of images with it)).

    The formula is that of the LVIS paper (Gupta et al., arXiv 1908.03195v2, appendix B.2), there
    used to repeat images. `from_annotations` counts a category in no image as in one.

    Attributes:
        image_shares: Share of the images that hold each category id, above 0.
        threshold: Categories rarer than this weigh more than 1.

    Raises:
        ValueError: A share or `threshold` is not positive.
    """

    image_shares: Mapping[int, float]
    threshold: float = 0.001

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"`threshold` must be positive, got {self.threshold}")
        for category_id, share in self.image_shares.items():
            if not share > 0:
                raise ValueError(
                    f"`image_shares` must be positive, got {share} for category {category_id}"
                )

    @classmethod
    def from_annotations(
        cls, lvis: Mapping[str, Any] | str | Path, *, threshold: float = 0.001
    ) -> RepeatFactors:
        """Count images of an LVIS v1 file, given parsed or as a path.

        Raises:
            AnnotationError: The file is no LVIS JSON.
            ValueError: `threshold` is not positive.
        """
        annotations = load_lvis(lvis)
        images: dict[int, set[int]] = {
            int(category["id"]): set() for category in annotations.categories
        }
        for annotation in annotations.annotations:
            images[annotation["category_id"]].add(annotation["image_id"])
        n_images = max(len(annotations.images), 1)
        shares = {category_id: max(len(ids), 1) / n_images for category_id, ids in images.items()}
        return cls(shares, threshold)

    def __call__(self, category_ids: IntArray, target_category_ids: IntArray) -> FloatArray:
        """Give the repeat factor of each category; 1 for one that the annotations do not know."""
        shares = np.array([self.image_shares.get(int(i), 1.0) for i in category_ids])
        return np.asarray(np.maximum(1.0, np.sqrt(self.threshold / shares)))


@dataclass(frozen=True, slots=True)
class Cooccurrence:
    """Weigh each category by how often it shares an image with the target's categories.

    The weight of c is the sum, over the categories t of the target, of the share of the images
    with t that also hold c. An image without instances gets no pastes.

    Attributes:
        conditional: For each category t, the share of its images that hold each other category.
    """

    conditional: Mapping[int, Mapping[int, float]]

    @classmethod
    def from_annotations(cls, lvis: Mapping[str, Any] | str | Path) -> Cooccurrence:
        """Count pairs in an LVIS v1 file, given parsed or as a path.

        Raises:
            AnnotationError: The file is no LVIS JSON.
        """
        present: dict[int, set[int]] = {}
        for annotation in load_lvis(lvis).annotations:
            present.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
        n_images: dict[int, int] = {}
        pairs: dict[int, dict[int, int]] = {}
        for categories in present.values():
            for category in categories:
                n_images[category] = n_images.get(category, 0) + 1
                counts = pairs.setdefault(category, {})
                for other in categories - {category}:
                    counts[other] = counts.get(other, 0) + 1
        return cls(
            {
                category: {other: n / n_images[category] for other, n in counts.items()}
                for category, counts in pairs.items()
            }
        )

    def __call__(self, category_ids: IntArray, target_category_ids: IntArray) -> FloatArray:
        """Give the summed shares."""
        weights = np.zeros(len(category_ids))
        for category in np.unique(target_category_ids).tolist():
            shares = self.conditional.get(category, {})
            weights += [shares.get(int(i), 0.0) for i in category_ids]
        return weights
