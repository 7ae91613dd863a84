"""Find where a JSON document departs from the layout of LVIS v1, entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TypeGuard

import bsgal_paste
from bsgal_train.errors import AnnotationError, AnnotationFormatError, UnknownCategoryError

PARTS = ("images", "annotations", "categories")

# LVIS v0.5 has 1230 categories under other ids than v1, and names images as COCO 2014 did.
_N_CATEGORIES_V05 = 1230
_IMAGE_PREFIXES_V05 = ("COCO_train2014_", "COCO_val2014_")

_FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")
_MAX_ID = 2**63 - 1
# Pillow opens no image with more.
_MAX_IMAGE_PX = 178_956_970

Problems = Iterator[AnnotationError]
Check = Callable[[Mapping[str, Any], str], Problems]
ImageHw = tuple[int, int]


def layout_problems(document: Mapping[str, Any], path: Path) -> Problems:
    """Yield everything that is not as in LVIS v1; nothing for a good file.

    Stops early where a problem would only cause others: a missing part, another version, or ids
    that cannot be relied on.
    """
    first = (_part_problems, _version_problems, _federated_problems, _id_problems)
    yield from _until_problems(document, str(path), (*first, _file_problems, _entry_problems))


def evaluation_problems(document: Mapping[str, Any], where: str) -> Problems:
    """Do as `layout_problems`, for a file whose images are not read and may be of LVIS v0.5.

    Args:
        document: what the file holds.
        where: its name in messages.
    """
    checks = (_part_problems, _federated_problems, _id_problems, _entry_problems)
    yield from _until_problems(document, where, checks)


def _until_problems(document: Mapping[str, Any], where: str, checks: tuple[Check, ...]) -> Problems:
    for check in checks:
        problems = list(check(document, where))
        yield from problems
        if problems:
            return


def _part_problems(document: Mapping[str, Any], where: str) -> Problems:
    for part in PARTS:
        entries = document.get(part)
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
            yield AnnotationFormatError(
                f"{where} has no list of objects `{part}`; an LVIS v1 file has images, annotations "
                f"and categories (this one has {', '.join(map(str, document)) or 'nothing'})"
            )
        elif part == "categories" and not entries:
            yield AnnotationFormatError(f"{where} has no categories")
    if not isinstance(document.get("info") or {}, Mapping):
        yield AnnotationFormatError(
            f"{where}: `info` must be an object, it is {shortened(document['info'])}"
        )


def _version_problems(document: Mapping[str, Any], where: str) -> Problems:
    if len(document["categories"]) == _N_CATEGORIES_V05 and any(
        str(image.get("file_name", "")).startswith(_IMAGE_PREFIXES_V05)
        for image in document["images"]
    ):
        yield AnnotationFormatError(
            f"{where} is of LVIS v0.5 ({_N_CATEGORIES_V05} categories, images named as in COCO "
            "2014); its category ids and splits differ from v1, so use the v1 file"
        )


def _federated_problems(document: Mapping[str, Any], where: str) -> Problems:
    images = document["images"]
    for field in _FEDERATED_FIELDS:
        lacking = [image.get("id") for image in images if not isinstance(image.get(field), list)]
        if lacking:
            yield AnnotationFormatError(
                f"{where}: {len(lacking)} of {len(images)} images have no list `{field}` (first: "
                f"image {lacking[0]}), which says what was looked for in each image. Plain COCO "
                "files lack it: for images in which every object is annotated, neg_category_ids "
                "holds all categories that are not in the image, and not_exhaustive_category_ids "
                "is empty"
            )


def _id_problems(document: Mapping[str, Any], where: str) -> Problems:
    for part in PARTS:
        seen: set[int] = set()
        for position, entry in enumerate(document[part]):
            if not _is_id(entry.get("id")):
                yield AnnotationFormatError(
                    f"{where}: {part}[{position}] has no `id`, an integer of at least 0: "
                    f"{shortened(entry.get('id'))}"
                )
            elif entry["id"] in seen:
                yield AnnotationFormatError(f"{where}: the id {entry['id']} occurs twice in {part}")
            else:
                seen.add(entry["id"])


def _file_problems(document: Mapping[str, Any], where: str) -> Problems:
    for image in document["images"]:
        names = [image[field] for field in ("file_name", "coco_url") if image.get(field)]
        if not names:
            yield AnnotationFormatError(
                f"{where}: image {image['id']} has neither `file_name` nor `coco_url`"
            )
        for name in names:
            if not _is_text(name):
                yield AnnotationFormatError(
                    f"{where}: image {image['id']} has the file name {shortened(name)}; it must be "
                    "a text"
                )


def _entry_problems(document: Mapping[str, Any], where: str) -> Problems:
    yield from _category_problems(document["categories"], where)
    sizes: dict[int, ImageHw | None] = {}
    for image in document["images"]:
        problems = list(_image_problems(image, f"{where}: image {image['id']}"))
        yield from problems
        sizes[image["id"]] = None if problems else (image["height"], image["width"])
    category_ids = {category["id"] for category in document["categories"]}
    for annotation in document["annotations"]:
        own = f"{where}: annotation {annotation['id']}"
        yield from _annotation_problems(annotation, sizes, category_ids, own)


def _category_problems(categories: list[Mapping[str, Any]], where: str) -> Problems:
    with_frequency = sum("frequency" in category for category in categories)
    if with_frequency not in (0, len(categories)):
        yield AnnotationFormatError(
            f"{where}: {with_frequency} of {len(categories)} categories have a `frequency`; give "
            "it for all, or for none to have it computed from the image counts"
        )
    for category in categories:
        own = f"{where}: category {category['id']}"
        if not _is_text(category.get("name")):
            yield AnnotationFormatError(f"{own} has no `name`: {shortened(category.get('name'))}")
        if category.get("frequency", "r") not in ("r", "c", "f"):
            yield AnnotationFormatError(
                f"{own} has frequency {shortened(category['frequency'])}; it must be r, c or f, by "
                "the number of its training images, or missing from all categories"
            )
        synonyms = category.get("synonyms", [])
        if not isinstance(synonyms, list) or not all(map(_is_text, synonyms)):
            yield AnnotationFormatError(
                f"{own} has synonyms {shortened(synonyms)}; they must be a list of texts"
            )


def _image_problems(image: Mapping[str, Any], where: str) -> Problems:
    n_px = 1
    for field in ("height", "width"):
        side = image.get(field)
        if type(side) is not int or side < 1:
            yield AnnotationFormatError(
                f"{where} has {field} {shortened(side)}; it must be a positive integer, in pixels"
            )
        else:
            n_px *= side
    if n_px > _MAX_IMAGE_PX:
        yield AnnotationFormatError(
            f"{where} has {shortened(image['width'])} x {shortened(image['height'])} px, more than "
            f"the {_MAX_IMAGE_PX} px of the largest image that can be read"
        )
    for field in _FEDERATED_FIELDS:
        if not all(map(_is_id, image[field])):
            yield AnnotationFormatError(
                f"{where} has {field} {shortened(image[field])}; it must be a list of category ids"
            )


def _annotation_problems(
    annotation: Mapping[str, Any],
    sizes: Mapping[int, ImageHw | None],
    category_ids: set[int],
    where: str,
) -> Problems:
    category_id, image_id = annotation.get("category_id"), annotation.get("image_id")
    if not _is_id(category_id) or category_id not in category_ids:
        yield UnknownCategoryError(
            f"{where} has category {shortened(category_id)}, which is not among the "
            f"file's {len(category_ids)} categories; add the category or remove the annotation"
        )
    if annotation.get("iscrowd"):
        yield AnnotationFormatError(
            f"{where} is a crowd region, which LVIS does not have; remove such annotations"
        )
    if not _is_id(image_id) or image_id not in sizes:
        yield AnnotationFormatError(
            f"{where} is of image {shortened(image_id)}, which the file does not list"
        )
        return
    image_hw = sizes[image_id]
    if image_hw is None:
        # Nothing can be said of where it lies in an image without a size.
        return
    area = annotation.get("area")
    if not _is_number(area) or not 0 <= area <= _MAX_IMAGE_PX:
        yield AnnotationFormatError(
            f"{where} has area {shortened(area)}; it must be its number of pixels, at least 0"
        )
    try:
        bsgal_paste.check_box(annotation.get("bbox"), image_hw, where)
        bsgal_paste.check_segmentation(annotation.get("segmentation"), image_hw, where)
    except bsgal_paste.AnnotationError as error:
        yield AnnotationFormatError(str(error))


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_ID


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float)


def _is_text(value: object) -> bool:
    """Say whether a value is a text that can be a name; JSON can hold half a character."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
