"""Read LVIS v1 annotation files: checks first, then images and masks one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from bsgal_paste._annotated_image import AnnotatedImage
from bsgal_paste._annotation_checks import check_segmentation
from bsgal_paste._arrays import BoolArray, ByteArray
from bsgal_paste._lvis_schema import MAX_PHOTO_PIXELS, check_lvis, has_segmentation
from bsgal_paste._manifest import parse_json
from bsgal_paste.errors import AnnotationError


@dataclass(frozen=True, slots=True)
class Lvis:
    """Hold the checked content of an annotation file, as plain LVIS mappings; `name` it."""

    images: Sequence[Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    raw: Mapping[str, Any]
    name: str

    @property
    def boxes_only(self) -> bool:
        """Say whether there are annotations and none has a segmentation.

        Raises:
            AnnotationError: Some have one and some have not.
        """
        without = [a["id"] for a in self.annotations if not has_segmentation(a)]
        if 0 < len(without) < len(self.annotations):
            raise AnnotationError(
                f"{self.name}: annotation {without[0]} has no segmentation, {len(without)} of "
                f"{len(self.annotations)} have none; all or none must"
            )
        return bool(without)

    def annotations_by_image(self) -> dict[int, list[Mapping[str, Any]]]:
        """Group the annotations; an image without any gets an empty list."""
        grouped: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            grouped[annotation["image_id"]].append(annotation)
        return grouped

    def sha256(self) -> str:
        """Give the hash of the whole content, whatever the order of its keys.

        Raises:
            AnnotationError: Something in it is no JSON, or is nested too deeply.
        """
        try:
            content = json.dumps(self.raw, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise AnnotationError(f"{self.name} is not valid JSON: {error}") from error
        return hashlib.sha256(content.encode()).hexdigest()


LvisSource: TypeAlias = Lvis | Mapping[str, Any] | str | Path
"""Path of an annotation file, its parsed content, or what `load_lvis` gave for it."""


def load_lvis(source: LvisSource) -> Lvis:
    """Parse and check an LVIS v1 annotation file.

    Args:
        source: The file or its content; what was checked before is returned as it is.

    Raises:
        FileNotFoundError: There is no such file.
        AnnotationError: It is no LVIS JSON, has a key twice in one object, or an entry is malformed
            or refers to nothing.
    """
    if isinstance(source, Lvis):
        return source
    raw, name = (source, "the annotations") if isinstance(source, Mapping) else _parsed(source)
    check_lvis(raw, name)
    return Lvis(raw["images"], raw["annotations"], raw["categories"], raw, name)


def _parsed(source: str | Path) -> tuple[Any, str]:
    name = str(source)
    try:
        return parse_json(Path(source).read_bytes(), unique_keys=True), name
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no annotation file {name}") from None
    except ValueError as error:
        raise AnnotationError(f"{name} is {error}") from error


def image_path(image: Mapping[str, Any], image_root: Path) -> Path:
    """Find an image's file: by `file_name`, else by the end of `coco_url`.

    Raises:
        AnnotationError: The image has neither, or its path leaves `image_root`.
    """
    name = image.get("file_name")
    candidates = [str(name)] if name else []
    if not name and image.get("coco_url"):
        parts = str(image["coco_url"]).split("/")
        candidates = ["/".join(parts[-2:]), parts[-1]]
    if not candidates:
        raise AnnotationError(f"image {image['id']} has neither `file_name` nor `coco_url`")
    for candidate in candidates:
        path = image_root / candidate
        try:
            is_inside = path.resolve().is_relative_to(image_root.resolve())
            is_file = path.is_file()
        except OSError as error:
            raise AnnotationError(
                f"image {image['id']}: its file cannot be looked for: {error}"
            ) from error
        if ".." in Path(candidate).parts or not is_inside:
            raise AnnotationError(f"image {image['id']}: {candidate!r} leaves {image_root}")
        if is_file:
            return path
    raise FileNotFoundError(
        f"image {image['id']} is not at {image_root / candidates[0]}; check the image folder"
    )


def read_annotated_image(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    image_root: Path,
    *,
    boxes_only: bool = False,
) -> tuple[AnnotatedImage, list[int]]:
    """Read an image with its masks, leaving out annotations whose mask has no pixel.

    With `boxes_only` segmentations are not looked at, and annotations are left out whose box has
    no area inside the image.

    Returns:
        The annotated image (tight boxes), and for each instance its index in `annotations`.

    Raises:
        AnnotationError: The image cannot be decoded or has another size than the file says, or
            a segmentation is malformed.
        FileNotFoundError: The image is missing.
    """
    pixels = _read_rgb(image_path(image, image_root), image)
    height, width = pixels.shape[:2]
    if boxes_only:
        return _with_boxes(pixels, annotations)
    masks = [decode_segmentation(annotation, height, width) for annotation in annotations]
    used = [index for index, mask in enumerate(masks) if mask.any()]
    stacked = np.zeros((len(used), height, width), dtype=bool)
    for slot, index in enumerate(used):
        stacked[slot] = masks[index]
    ids = [int(annotations[index]["category_id"]) for index in used]
    return AnnotatedImage(pixels, stacked, np.array(ids, dtype=np.int64)), used


def _with_boxes(
    pixels: ByteArray, annotations: Sequence[Mapping[str, Any]]
) -> tuple[AnnotatedImage, list[int]]:
    height, width = pixels.shape[:2]
    boxes, ids, used = [], [], []
    for index, annotation in enumerate(annotations):
        left, top, box_width, box_height = map(float, annotation["bbox"])
        right, bottom = left + box_width, top + box_height
        inside = min(right, bottom) > 0 and left < width and top < height
        if inside and min(box_width, box_height) > 0:
            boxes.append([left, top, right, bottom])
            ids.append(int(annotation["category_id"]))
            used.append(index)
    return AnnotatedImage.from_boxes(pixels, boxes, np.array(ids, dtype=np.int64)), used


def decode_segmentation(
    annotation: Mapping[str, Any], height: int, width: int, *, margin: int = 1
) -> BoolArray:
    """Decode polygons or a run-length encoding into a bool mask `(height, width)`.

    Args:
        annotation: With `id` and `segmentation`.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        margin: How far outside a polygon may reach, in longer sides of the image.

    Raises:
        AnnotationError: The segmentation is malformed or of another size.
    """
    where = f"annotation {annotation['id']}"
    if not has_segmentation(annotation):
        raise AnnotationError(
            f"{where}: malformed segmentation: there is none; all or none of the annotations of "
            "an image must have one"
        )
    segmentation = annotation["segmentation"]
    check_segmentation(segmentation, (height, width), where, margin=margin)
    if not isinstance(segmentation, Mapping):
        encoded = coco_mask.merge(coco_mask.frPyObjects(list(segmentation), height, width))
    elif isinstance(segmentation["counts"], str | bytes):
        encoded = segmentation
    else:
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    return np.asarray(coco_mask.decode(encoded), dtype=bool)


def encode_mask(mask: BoolArray) -> dict[str, Any]:
    """Encode a mask as compressed COCO run lengths, ready for JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}


def _read_rgb(path: Path, image: Mapping[str, Any]) -> ByteArray:
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PHOTO_PIXELS:
                raise AnnotationError(
                    f"image {image['id']}: {path} has {opened.width} x {opened.height} px, over "
                    f"the limit of {MAX_PHOTO_PIXELS} pixels; make it smaller"
                )
            if opened.mode == "F" or opened.mode.startswith("I"):
                raise AnnotationError(
                    f"image {image['id']}: {path} has more than 8 bits per pixel (Pillow's mode "
                    f"{opened.mode}), and does not say which value is white; save it with 8 bits"
                )
            upright = ImageOps.exif_transpose(opened)
            pixels = np.asarray(upright.convert("RGB"))
    except AnnotationError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AnnotationError(f"image {image['id']}: cannot decode {path}: {error}") from error
    if pixels.shape[:2] != (image["height"], image["width"]):
        raise AnnotationError(
            f"image {image['id']}: {path} is {pixels.shape[1]} x {pixels.shape[0]} px, "
            f"the annotations say {image['width']} x {image['height']}"
        )
    return pixels
