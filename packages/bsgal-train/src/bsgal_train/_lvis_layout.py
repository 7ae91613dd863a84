"""Check that a JSON document has the layout of LVIS v1, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bsgal_train.errors import AnnotationFormatError, UnknownCategoryError

# LVIS v0.5 has 1230 categories under other ids than v1, and names images as COCO 2014 did.
_N_CATEGORIES_V05 = 1230
_IMAGE_PREFIXES_V05 = ("COCO_train2014_", "COCO_val2014_")

_FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def check_layout(document: Mapping[str, Any], path: Path) -> None:
    """Raise for the first thing that is not as in LVIS v1.

    Raises:
        AnnotationFormatError: A part or field is missing or of the wrong kind, an id occurs
            twice, or the file is of LVIS v0.5 or plain COCO.
        UnknownCategoryError: An annotation has a category that the file lacks.
    """
    for part in ("images", "annotations", "categories"):
        entries = document.get(part)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise AnnotationFormatError(
                f"{path} has no list of objects `{part}`; an LVIS v1 file has images, annotations "
                f"and categories (this one has {', '.join(map(str, document)) or 'nothing'})"
            )
    _check_version(document, path)
    for part in ("images", "annotations", "categories"):
        _check_ids(document[part], part, path)
    _check_categories(document["categories"], path)
    for image in document["images"]:
        _check_image(image, path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    category_ids = {category["id"] for category in document["categories"]}
    for annotation in document["annotations"]:
        _check_annotation(annotation, sizes, category_ids, path)


def _check_version(document: Mapping[str, Any], path: Path) -> None:
    images, categories = document["images"], document["categories"]
    if len(categories) == _N_CATEGORIES_V05 and any(
        str(image.get("file_name", "")).startswith(_IMAGE_PREFIXES_V05) for image in images
    ):
        raise AnnotationFormatError(
            f"{path} is of LVIS v0.5 ({_N_CATEGORIES_V05} categories, images named as in COCO "
            "2014); its category ids and splits differ from v1, so use the v1 file"
        )
    for field in _FEDERATED_FIELDS:
        lacking = [image.get("id") for image in images if not isinstance(image.get(field), list)]
        if lacking:
            raise AnnotationFormatError(
                f"{path}: {len(lacking)} of {len(images)} images have no list `{field}` (first: "
                f"image {lacking[0]}). Plain COCO files lack it: for images in which every object "
                "is annotated, neg_category_ids holds all categories that are not in the image, "
                "and not_exhaustive_category_ids is empty"
            )


def _check_ids(entries: Iterable[Mapping[str, Any]], part: str, path: Path) -> None:
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        if not _is_int(entry.get("id")):
            raise AnnotationFormatError(f"{path}: {part}[{position}] has no integer `id`")
        if entry["id"] in seen:
            raise AnnotationFormatError(f"{path}: the id {entry['id']} occurs twice in {part}")
        seen.add(entry["id"])


def _check_categories(categories: list[Mapping[str, Any]], path: Path) -> None:
    if not categories:
        raise AnnotationFormatError(f"{path} has no categories")
    with_frequency = sum("frequency" in category for category in categories)
    if with_frequency not in (0, len(categories)):
        raise AnnotationFormatError(
            f"{path}: {with_frequency} of {len(categories)} categories have a `frequency`; give it "
            "for all, or for none to have it computed from the image counts"
        )
    for category in categories:
        where = f"{path}: category {category['id']}"
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise AnnotationFormatError(f"{where} has no `name`")
        if category.get("frequency", "r") not in ("r", "c", "f"):
            raise AnnotationFormatError(
                f"{where} has frequency {category['frequency']!r}; it must be r, c or f"
            )


def _check_image(image: Mapping[str, Any], path: Path) -> None:
    where = f"{path}: image {image['id']}"
    for field in ("height", "width"):
        if not _is_int(image.get(field)) or image[field] < 1:
            raise AnnotationFormatError(
                f"{where} has {field} {image.get(field)!r}; it must be a positive integer"
            )
    if not (image.get("file_name") or image.get("coco_url")):
        raise AnnotationFormatError(f"{where} has neither `file_name` nor `coco_url`")


def _check_annotation(
    annotation: Mapping[str, Any],
    sizes: Mapping[int, tuple[int, int]],
    category_ids: set[int],
    path: Path,
) -> None:
    where = f"{path}: annotation {annotation['id']}"
    if annotation.get("image_id") not in sizes:
        raise AnnotationFormatError(
            f"{where} is of image {annotation.get('image_id')!r}, which the file does not list"
        )
    if annotation.get("category_id") not in category_ids:
        raise UnknownCategoryError(
            f"{where} has category {annotation.get('category_id')!r}, which is not among the "
            f"file's {len(category_ids)} categories; add the category or remove the annotation"
        )
    if annotation.get("iscrowd"):
        raise AnnotationFormatError(
            f"{where} is a crowd region, which LVIS does not have; remove such annotations"
        )
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        raise AnnotationFormatError(f"{where} has bbox {bbox!r}; it must be [x, y, width, height]")
    problem = _segmentation_problem(annotation.get("segmentation"), sizes[annotation["image_id"]])
    if problem:
        raise AnnotationFormatError(f"{where} has a bad segmentation: {problem}")


def _segmentation_problem(segmentation: object, image_hw: tuple[int, int]) -> str | None:
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("counts"), str | list):
            return "a run-length encoding needs `counts`"
        if segmentation.get("size") != list(image_hw):
            return f"`size` is {segmentation.get('size')}, the image's is {list(image_hw)}"
        return None
    if not isinstance(segmentation, list) or not segmentation:
        return "it must be a list of polygons or a run-length encoding"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "a polygon needs an even number of coordinates, at least 6"
        if not all(map(_is_finite, polygon)):
            return "a polygon has a coordinate that is not a finite number"
    return None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
