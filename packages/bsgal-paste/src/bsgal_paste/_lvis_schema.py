"""Say what an LVIS v1 file must hold, entry by entry."""

from __future__ import annotations

from collections.abc import Mapping, Set
from reprlib import repr as shortened
from typing import Any, TypeGuard

from bsgal_paste._annotation_checks import check_box, check_segmentation, is_number
from bsgal_paste.errors import AnnotationError

MAX_PHOTO_PIXELS = 8192 * 8192

_PARTS = {"images": "image", "annotations": "annotation", "categories": "category"}
_MAX_ID = 2**63 - 1
# Deeper values cannot be handed to other processes.
_MAX_DEPTH = 32
_CHECKED_LISTS = {
    "bbox", "neg_category_ids", "not_exhaustive_category_ids", "segmentation", "synonyms",
}  # fmt: skip


def check_lvis(document: object, name: str) -> None:
    """Check everything in an annotation file that this package reads.

    Args:
        document: The parsed JSON.
        name: Of the file, for messages.

    Raises:
        AnnotationError: A part is missing, or an entry is malformed or refers to nothing; the
            message names the first.
    """
    missing = sorted(_PARTS.keys() - (document.keys() if isinstance(document, Mapping) else ()))
    if missing or not isinstance(document, Mapping):
        raise AnnotationError(f"{name}: no LVIS annotations, the keys {missing} are missing")
    if not isinstance(document.get("info", {}), Mapping):
        raise AnnotationError(f"{name}: `info` must be an object")
    if not isinstance(document.get("licenses", []), list):
        raise AnnotationError(f"{name}: `licenses` must be a list")
    by_id = {part: _by_id(document[part], part, name) for part in _PARTS}
    category_ids = by_id["categories"].keys()
    with_frequency = sum("frequency" in category for category in document["categories"])
    if with_frequency not in (0, len(by_id["categories"])):
        raise AnnotationError(
            f"{name}: {with_frequency} of {len(by_id['categories'])} categories have a "
            "`frequency`; all or none must"
        )
    for category in document["categories"]:
        _check_category(category, f"{name}: category {category['id']}")
    for image in document["images"]:
        _check_image(image, category_ids, f"{name}: image {image['id']}")
    for annotation in document["annotations"]:
        where = f"{name}: annotation {annotation['id']}"
        _check_annotation(annotation, by_id["images"], category_ids, where)


def has_segmentation(annotation: Mapping[str, Any]) -> bool:
    """Say whether an annotation has a mask; files of boxes leave it out, or say None or `[]`."""
    segmentation = annotation.get("segmentation")
    return not (segmentation is None or (isinstance(segmentation, list) and not segmentation))


def _by_id(entries: object, part: str, name: str) -> dict[int, Mapping[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise AnnotationError(f"{name}: `{part}` must be a list of objects")
    by_id: dict[int, Mapping[str, Any]] = {}
    for position, entry in enumerate(entries):
        if not _is_id(entry.get("id")):
            raise AnnotationError(
                f"{name}: every {_PARTS[part]} needs an id of its own, an integer of at least 0; "
                f"{part}[{position}] has {shortened(entry.get('id'))}"
            )
        if entry["id"] in by_id:
            raise AnnotationError(
                f"{name}: every {_PARTS[part]} needs an id of its own; {entry['id']} occurs twice "
                f"in {part}"
            )
        for field, value in entry.items():
            if field not in _CHECKED_LISTS and _is_deeper(value, _MAX_DEPTH):
                raise AnnotationError(
                    f"{name}: {_PARTS[part]} {entry['id']}: `{field}` is nested more than "
                    f"{_MAX_DEPTH} deep"
                )
        by_id[entry["id"]] = entry
    return by_id


def _check_category(category: Mapping[str, Any], where: str) -> None:
    if not _is_text(category.get("name")):
        raise AnnotationError(
            f"{where} needs id and name, a text; got {shortened(category.get('name'))}"
        )
    synonyms = category.get("synonyms", [])
    if not isinstance(synonyms, list) or not all(map(_is_text, synonyms)):
        raise AnnotationError(
            f"{where}: `synonyms` must be a list of texts, got {shortened(synonyms)}"
        )
    if category.get("frequency", "r") not in ("r", "c", "f"):
        raise AnnotationError(
            f"{where}: `frequency` must be 'r', 'c' or 'f', got {shortened(category['frequency'])}"
        )

    for field in ("image_count", "instance_count"):
        if not _is_id(category.get(field, 0)):
            raise AnnotationError(
                f"{where}: `{field}` must be an integer of at least 0, got "
                f"{shortened(category[field])}"
            )


def _check_image(image: Mapping[str, Any], category_ids: Set[int], where: str) -> None:
    width, height = image.get("width"), image.get("height")
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise AnnotationError(
            f"{where} needs id, width and height, each a positive integer; got width "
            f"{shortened(width)} and height {shortened(height)}"
        )
    if width * height > MAX_PHOTO_PIXELS:
        raise AnnotationError(
            f"{where} has {width} x {height} px, over the limit of {MAX_PHOTO_PIXELS} pixels"
        )
    for field in ("file_name", "coco_url"):
        if image.get(field) is not None and not _is_text(image[field]):
            raise AnnotationError(
                f"{where}: `{field}` must be a text, got {shortened(image[field])}"
            )
    for field in ("neg_category_ids", "not_exhaustive_category_ids"):
        ids = image.get(field, [])
        if not isinstance(ids, list) or not all(_is_id(i) and i in category_ids for i in ids):
            raise AnnotationError(
                f"{where}: `{field}` must be a list of ids of categories of the file, got "
                f"{shortened(ids)}"
            )


def _check_annotation(
    annotation: Mapping[str, Any],
    images: Mapping[int, Mapping[str, Any]],
    category_ids: Set[int],
    where: str,
) -> None:
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    if not _is_id(image_id) or image_id not in images:
        raise AnnotationError(f"{where}: unknown image {shortened(image_id)}")
    if not _is_id(category_id) or category_id not in category_ids:
        raise AnnotationError(f"{where}: unknown category {shortened(category_id)}")
    image = images[image_id]
    image_hw = image["height"], image["width"]
    check_box(annotation.get("bbox"), image_hw, where)
    area = annotation.get("area", 0)
    if not is_number(area) or not 0 <= area <= 9 * max(image_hw) ** 2:
        raise AnnotationError(
            f"{where}: `area` must be a number of pixels, at least 0, got {shortened(area)}"
        )
    crowd = annotation.get("iscrowd", 0)
    if type(crowd) is not int or crowd not in (0, 1):
        raise AnnotationError(f"{where}: `iscrowd` must be 0 or 1, got {shortened(crowd)}")
    if has_segmentation(annotation):
        check_segmentation(annotation["segmentation"], image_hw, where)


def _is_deeper(value: object, n_levels: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not n_levels or any(_is_deeper(one, n_levels - 1) for one in inner)


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_ID


def _is_text(value: object) -> bool:
    """Say whether a value is a text that can be a file's or a category's name."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can hold half a character.
        return False
    return True
