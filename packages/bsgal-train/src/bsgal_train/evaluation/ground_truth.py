"""Index an LVIS annotation file for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_train.annotations import Frequency, read_lvis_json
from bsgal_train.errors import AnnotationFormatError

__all__ = ["EvaluatedCategory", "GroundTruth"]

_PARTS = ("images", "annotations", "categories")
_ANNOTATION_FIELDS = ("image_id", "category_id", "bbox", "area", "segmentation")


@dataclass(frozen=True, slots=True)
class EvaluatedCategory:
    """A category with its annotations in the file."""

    category_id: int
    name: str
    frequency: Frequency | None
    """None if the file does not state the groups."""
    annotations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What is known to be in the images, and what is known not to be."""

    images: Mapping[int, Mapping[str, Any]]
    """Image entries by id."""
    categories: Mapping[int, EvaluatedCategory]
    """By id, in ascending order."""
    image_ids: npt.NDArray[np.int64]
    """Ids of the images, ascending."""
    category_ids: npt.NDArray[np.int64]
    """Ids of the categories, ascending."""
    judged_pairs: npt.NDArray[np.int64]
    """Pairs (image, category) for which the file says whether the category is there: position of
    the image in `image_ids` times the number of categories, plus position of the category;
    ascending."""

    @classmethod
    def load(cls, annotations: str | Path | Mapping[str, Any]) -> GroundTruth:
        """Index an annotation file, given by its path or as the object it holds.

        Raises:
            AnnotationError: The file is missing or cannot be read.
            AnnotationFormatError: A part or a field that evaluation needs is missing.
        """
        if isinstance(annotations, Mapping):
            document, where = annotations, "`annotations`"
        else:
            document, where = read_lvis_json(Path(annotations)), str(annotations)
        for part in _PARTS:
            if not isinstance(document.get(part), list):
                raise AnnotationFormatError(f"{where} has no list `{part}`; it must be LVIS v1")
        if not document["categories"]:
            raise AnnotationFormatError(f"{where} has no category, so there is nothing to evaluate")
        images = {image["id"]: image for image in document["images"]}
        judged = {
            (image["id"], category_id)
            for image in document["images"]
            for category_id in _stated_lists(image, where)["neg_category_ids"]
        }
        annotations_of: dict[int, list[Mapping[str, Any]]] = {
            category["id"]: [] for category in document["categories"]
        }
        for annotation in document["annotations"]:
            _check_annotation(annotation, images, annotations_of, where)
            # As in LVIS's own evaluation, what has no area is not there.
            if annotation["area"] > 0:
                annotations_of[annotation["category_id"]].append(annotation)
                judged.add((annotation["image_id"], annotation["category_id"]))
        states_frequency = any("frequency" in category for category in document["categories"])
        categories = {
            category["id"]: EvaluatedCategory(
                category_id=category["id"],
                name=category["name"],
                frequency=_stated_frequency(category, states_frequency, where),
                annotations=tuple(annotations_of[category["id"]]),
            )
            for category in sorted(document["categories"], key=lambda item: item["id"])
        }
        image_ids = np.array(sorted(images), dtype=np.int64)
        category_ids = np.array(list(categories), dtype=np.int64)
        truth = cls(
            images=images,
            categories=categories,
            image_ids=image_ids,
            category_ids=category_ids,
            judged_pairs=np.zeros(0, dtype=np.int64),
        )
        # Absent categories may be listed that the file does not define; nobody can predict them.
        pairs = np.array(
            [pair for pair in judged if pair[1] in categories], dtype=np.int64
        ).reshape(-1, 2)
        keys = np.unique(truth._pairs(pairs[:, 0], pairs[:, 1]))
        return replace(truth, judged_pairs=keys)

    def is_judged(
        self, image_id: npt.NDArray[np.int64], category_id: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Say for which pairs of known ids (N,) it is known whether the category is there."""
        return np.isin(self._pairs(image_id, category_id), self.judged_pairs)

    def image_hw_of(self, image_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give height and width (N, 2) of images by their known ids (N,)."""
        found, inverse = np.unique(image_id, return_inverse=True)
        images = [self.images[one] for one in found.tolist()]
        sizes = np.array([(one["height"], one["width"]) for one in images], dtype=np.int64)
        return sizes.reshape(-1, 2)[inverse]

    def _pairs(
        self, image_id: npt.NDArray[np.int64], category_id: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        image = np.searchsorted(self.image_ids, image_id)
        category = np.searchsorted(self.category_ids, category_id)
        pairs: npt.NDArray[np.int64] = image * len(self.category_ids) + category
        return pairs


def _stated_lists(image: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for field in ("neg_category_ids", "not_exhaustive_category_ids"):
        if not isinstance(image.get(field), list):
            raise AnnotationFormatError(
                f"{where}: image {image['id']} has no list `{field}`; LVIS evaluation needs to "
                "know which categories were looked for in each image"
            )
    return image


def _stated_frequency(
    category: Mapping[str, Any], states_frequency: bool, where: str
) -> Frequency | None:
    if not states_frequency:
        return None
    frequency: Frequency | None = category.get("frequency")
    if frequency not in ("r", "c", "f"):
        raise AnnotationFormatError(
            f"{where}: category {category['id']} has frequency {frequency!r}; it must be r, c or "
            "f, by the number of its training images, or missing from all categories"
        )
    return frequency


def _check_annotation(
    annotation: Mapping[str, Any],
    images: Mapping[int, Any],
    annotations_of: Mapping[int, Any],
    where: str,
) -> None:
    missing = [field for field in _ANNOTATION_FIELDS if field not in annotation]
    if missing:
        raise AnnotationFormatError(
            f"{where}: annotation {annotation.get('id')} has no {', '.join(missing)}"
        )
    for field, known in (("image_id", images), ("category_id", annotations_of)):
        if annotation[field] not in known:
            raise AnnotationFormatError(
                f"{where}: annotation {annotation.get('id')} has {field} {annotation[field]!r}, "
                "which the file does not list"
            )
