"""Real objects of an LVIS data set: where they are annotated, and their crops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import cv2
import numpy as np

from bsgal_mask._fields import Fields, is_number
from bsgal_mask._files import read_file
from bsgal_mask._images import decode_image
from bsgal_mask._jsonl import Row, parse_object
from bsgal_mask._segmenter import Image
from bsgal_mask.errors import ImageError, RealCropError

# DiverGen's crops: this much of the surroundings, blurred by a box filter of this width.
_MARGIN_PX, _BLUR_PX = 40, 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FARTHEST_PX = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class RealObject:
    """One annotated object: where its image is, and its outline."""

    where: str
    """The annotation, for messages."""
    category_id: int
    image: Path
    bbox_xywh: Sequence[float]
    polygons: Sequence[Sequence[float]]
    """Each x, y, x, y, ... of at least three corners."""


def read_real_objects(path: Path, root: Path, max_per_category: int) -> list[RealObject]:
    """Return the objects of an LVIS file, ordered by image so that each image is read once.

    Args:
        path: The JSON file.
        root: The folder of the images.
        max_per_category: How many of a category to return, the first by annotation id.

    Raises:
        RealCropError: The file cannot be read, or something in it is not as LVIS has it.
    """
    try:
        data = parse_object(path.read_bytes().removeprefix(_BYTE_ORDER_MARK))
        images, annotations = (_entries(data, key) for key in ("images", "annotations"))
    except OSError as error:
        raise RealCropError(f"cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise RealCropError(f"{path} is not an LVIS annotation file ({error})") from None
    try:
        files = {}
        for number, row in enumerate(images, start=1):
            image = Fields(row, f"{path}, image number {number}")
            files[image.integer("id")] = root / _file_name(image)
        objects = [*_objects(path, annotations, files, max_per_category)]
    except ValueError as error:
        raise RealCropError(str(error)) from None
    return sorted(objects, key=lambda found: str(found.image))


def real_crops(objects: Sequence[RealObject], max_image_px: int) -> Iterator[Image]:
    """Yield each object's box with 40 px around it, blurred outside of the mask.

    Args:
        objects: Ordered by image.
        max_image_px: Larger images (width times height) are refused.

    Yields:
        uint8 RGB (H, W, 3).

    Raises:
        RealCropError: An image cannot be read, or an object does not lie in it.
    """
    path, image = None, np.zeros((1, 1, 3), np.uint8)
    for found in objects:
        if found.image != path:
            path = found.image
            try:
                image = decode_image(read_file(path), max_image_px=max_image_px)
            except ImageError as error:
                raise RealCropError(f"{path}: {error}") from None
        yield _crop(image, found)


def _entries(data: Row, key: str) -> list[Row]:
    entries = data.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{key!r} must be a list of JSON objects")
    return entries


def _objects(
    path: Path, annotations: Sequence[Row], files: Mapping[int, Path], max_per_category: int
) -> Iterator[RealObject]:
    rows = [Fields(row, f"{path}, annotation number {n}") for n, row in enumerate(annotations, 1)]
    counts: Counter[int] = Counter()
    for row in sorted(rows, key=lambda row: row.integer("id")):
        fields = Fields(row.row, f"{path}, annotation {row.integer('id')}")
        category_id = fields.integer("category_id")
        counts[category_id] += 1
        if counts[category_id] > max_per_category:
            continue
        if fields.integer("image_id") not in files:
            raise fields.refused("image_id", "the id of one of the images")
        yield RealObject(
            where=fields.where,
            category_id=category_id,
            image=files[fields.integer("image_id")],
            bbox_xywh=_box_of(fields),
            polygons=_polygons_of(fields),
        )


def _file_name(image: Fields) -> str:
    if not image.is_null("file_name"):
        return image.file("file_name")
    name = "/".join(image.text("coco_url").split("/")[-2:])
    return Fields({"coco_url": name}, image.where).file("coco_url")


def _box_of(fields: Fields) -> list[float]:
    box = fields.row.get("bbox")
    if not _are_numbers(box) or len(box) != 4 or min(box[2:]) < 0:
        raise fields.refused("bbox", "numbers x, y, width, height in pixels")
    return box


def _polygons_of(fields: Fields) -> list[list[float]]:
    polygons = fields.row.get("segmentation")
    if (
        not isinstance(polygons, list)
        or not polygons
        or not all(_are_numbers(one) and len(one) >= 6 and len(one) % 2 == 0 for one in polygons)
    ):
        raise fields.refused(
            "segmentation",
            "polygons of at least three corners, as LVIS's are; convert run-length masks first",
        )
    return polygons


def _are_numbers(values: Any) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(
        is_number(value, -_FARTHEST_PX, _FARTHEST_PX) for value in values
    )


def _crop(image: Image, found: RealObject) -> Image:
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for polygon in found.polygons:
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
        _check_nearby(found, "segmentation", corners, (width, height))
        # OpenCV names a pixel by its centre, LVIS by its upper left corner.
        cv2.fillPoly(mask, [np.rint(corners - 0.5).astype(np.int32)], 1)
    x, y, box_width, box_height = found.bbox_xywh
    corners = np.array([[x, y], [x + box_width, y + box_height]])
    _check_nearby(found, "bbox", corners, (width, height))
    rows = slice(max(0, int(y) - _MARGIN_PX), math.ceil(y + box_height) + _MARGIN_PX)
    columns = slice(max(0, int(x) - _MARGIN_PX), math.ceil(x + box_width) + _MARGIN_PX)
    crop = image[rows, columns]
    if not crop.size:
        raise _outside(found, "bbox", (width, height))
    blurred = cv2.blur(crop, (_BLUR_PX, _BLUR_PX))
    return np.where(mask[rows, columns, None] > 0, crop, blurred)


def _check_nearby(
    found: RealObject, field: str, corners: np.ndarray[Any, Any], resolution_wh: tuple[int, int]
) -> None:
    """Refuse corners (N, 2) that lie more than the image's own size outside of it."""
    sides = np.array(resolution_wh)
    if (corners < -sides).any() or (corners > 2 * sides).any():
        raise _outside(found, field, resolution_wh)


def _outside(found: RealObject, field: str, resolution_wh: tuple[int, int]) -> RealCropError:
    width, height = resolution_wh
    return RealCropError(
        f"{found.where}: {field!r} lies outside of the image {found.image}, {width} x {height} px"
    )
