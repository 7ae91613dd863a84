"""Index an LVIS annotation file for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    judged: frozenset[tuple[int, int]]
    """Pairs (image id, category id) for which the file says whether the category is there."""

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
        return cls(images=images, categories=categories, judged=frozenset(judged))


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
