"""Find where a JSON document departs from the layout of LVIS v1, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from bsgal_train.errors import AnnotationError, AnnotationFormatError, UnknownCategoryError

PARTS = ("images", "annotations", "categories")

# LVIS v0.5 has 1230 categories under other ids than v1, and names images as COCO 2014 did.
_N_CATEGORIES_V05 = 1230
_IMAGE_PREFIXES_V05 = ("COCO_train2014_", "COCO_val2014_")

_FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def layout_problems(document: Mapping[str, Any], path: Path) -> Iterator[AnnotationError]:
    """Yield everything that is not as in LVIS v1; nothing for a good file.

    Stops early where a problem would only cause others: a missing part, another version, or ids
    that cannot be relied on.
    """
    for check in (_part_problems, _version_problems, _id_problems):
        problems = list(check(document, path))
        yield from problems
        if problems:
            return
    yield from _category_problems(document["categories"], path)
    for image in document["images"]:
        yield from _image_problems(image, path)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in document["images"]}
    category_ids = {category["id"] for category in document["categories"]}
    for annotation in document["annotations"]:
        yield from _annotation_problems(annotation, sizes, category_ids, path)


def _part_problems(document: Mapping[str, Any], path: Path) -> Iterator[AnnotationError]:
    for part in PARTS:
        entries = document.get(part)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            yield AnnotationFormatError(
                f"{path} has no list of objects `{part}`; an LVIS v1 file has images, annotations "
                f"and categories (this one has {', '.join(map(str, document)) or 'nothing'})"
            )


def _version_problems(document: Mapping[str, Any], path: Path) -> Iterator[AnnotationError]:
    images, categories = document["images"], document["categories"]
    if not categories:
        yield AnnotationFormatError(f"{path} has no categories")
    if len(categories) == _N_CATEGORIES_V05 and any(
        str(image.get("file_name", "")).startswith(_IMAGE_PREFIXES_V05) for image in images
    ):
        yield AnnotationFormatError(
            f"{path} is of LVIS v0.5 ({_N_CATEGORIES_V05} categories, images named as in COCO "
            "2014); its category ids and splits differ from v1, so use the v1 file"
        )
    for field in _FEDERATED_FIELDS:
        lacking = [image.get("id") for image in images if not isinstance(image.get(field), list)]
        if lacking:
            yield AnnotationFormatError(
                f"{path}: {len(lacking)} of {len(images)} images have no list `{field}` (first: "
                f"image {lacking[0]}). Plain COCO files lack it: for images in which every object "
                "is annotated, neg_category_ids holds all categories that are not in the image, "
                "and not_exhaustive_category_ids is empty"
            )


def _id_problems(document: Mapping[str, Any], path: Path) -> Iterator[AnnotationError]:
    for part in PARTS:
        seen: set[int] = set()
        for position, entry in enumerate(document[part]):
            if not _is_int(entry.get("id")):
                yield AnnotationFormatError(f"{path}: {part}[{position}] has no integer `id`")
            elif entry["id"] in seen:
                yield AnnotationFormatError(f"{path}: the id {entry['id']} occurs twice in {part}")
            else:
                seen.add(entry["id"])


def _category_problems(
    categories: list[Mapping[str, Any]], path: Path
) -> Iterator[AnnotationError]:
    with_frequency = sum("frequency" in category for category in categories)
    if with_frequency not in (0, len(categories)):
        yield AnnotationFormatError(
            f"{path}: {with_frequency} of {len(categories)} categories have a `frequency`; give it "
            "for all, or for none to have it computed from the image counts"
        )
    for category in categories:
        where = f"{path}: category {category['id']}"
        if not isinstance(category.get("name"), str) or not category["name"]:
            yield AnnotationFormatError(f"{where} has no `name`")
        if category.get("frequency", "r") not in ("r", "c", "f"):
            yield AnnotationFormatError(
                f"{where} has frequency {category['frequency']!r}; it must be r, c or f"
            )


def _image_problems(image: Mapping[str, Any], path: Path) -> Iterator[AnnotationError]:
    where = f"{path}: image {image['id']}"
    for field in ("height", "width"):
        if not _is_int(image.get(field)) or image[field] < 1:
            yield AnnotationFormatError(
                f"{where} has {field} {image.get(field)!r}; it must be a positive integer"
            )
    if not (image.get("file_name") or image.get("coco_url")):
        yield AnnotationFormatError(f"{where} has neither `file_name` nor `coco_url`")


def _annotation_problems(
    annotation: Mapping[str, Any],
    sizes: Mapping[int, tuple[object, object]],
    category_ids: set[int],
    path: Path,
) -> Iterator[AnnotationError]:
    where = f"{path}: annotation {annotation['id']}"
    category_id, image_id = annotation.get("category_id"), annotation.get("image_id")
    if not _is_int(category_id) or category_id not in category_ids:
        yield UnknownCategoryError(
            f"{where} has category {category_id!r}, which is not among the "
            f"file's {len(category_ids)} categories; add the category or remove the annotation"
        )
    if annotation.get("iscrowd"):
        yield AnnotationFormatError(
            f"{where} is a crowd region, which LVIS does not have; remove such annotations"
        )
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        yield AnnotationFormatError(f"{where} has bbox {bbox!r}; it must be [x, y, width, height]")
    if not _is_int(image_id) or image_id not in sizes:
        yield AnnotationFormatError(
            f"{where} is of image {image_id!r}, which the file does not list"
        )
        return
    problem = _segmentation_problem(annotation.get("segmentation"), list(sizes[image_id]))
    if problem:
        yield AnnotationFormatError(f"{where} has a bad segmentation: {problem}")


def _segmentation_problem(segmentation: object, image_hw: list[object]) -> str | None:
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("counts"), str | list):
            return "a run-length encoding needs `counts`"
        if segmentation.get("size") != image_hw:
            return f"`size` is {segmentation.get('size')}, the image's is {image_hw}"
        return None
    if not isinstance(segmentation, list) or not segmentation:
        return "it must be a list of polygons or a run-length encoding"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "a polygon needs an even number of coordinates, at least 6"
        if not all(map(_is_finite, polygon)):
            return "a polygon has a coordinate that is not a finite number"
    return None


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
