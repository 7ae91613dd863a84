"""Pictures of the real objects of a class, from the training images."""

from __future__ import annotations

from PIL import Image

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.annotations.lvis import ImageRecord, InstanceRecord
from bsgal_train.annotations.read_image import read_image
from bsgal_train.errors import CorruptImageError
from bsgal_train.inspect.report.pictures import as_png

__all__ = ["real_objects"]

_MAX_IMAGES = 30
_MARGIN = 0.15
_MIN_SIDE_PX = 4


def real_objects(annotations: LvisAnnotations, class_index: int, n: int) -> list[bytes]:
    """Return pictures of up to `n` real objects of a class, the largest of its first images.

    Args:
        annotations: of the training images.
        class_index: see `LvisCategory`.
        n: pictures at most; fewer where the class has fewer that can be read and made out.

    Returns:
        PNG files.
    """
    images = (annotations.images[i] for i in annotations.image_indices_of_class[class_index])
    found = [
        (record, one)
        for record, _ in zip(images, range(_MAX_IMAGES), strict=False)
        for one in record.instances
        if one.class_index == class_index and min(one.bbox_xywh[2:]) >= _MIN_SIDE_PX
    ]
    found.sort(key=lambda pair: pair[1].bbox_xywh[2] * pair[1].bbox_xywh[3], reverse=True)
    pictures: list[bytes] = []
    for record, one in found:
        if len(pictures) == n:
            break
        try:
            pictures.append(_crop(record, one))
        except CorruptImageError:
            continue
    return pictures


def _crop(record: ImageRecord, one: InstanceRecord) -> bytes:
    """Return an object with a little of what is around it."""
    x, y, width, height = one.bbox_xywh
    margin = _MARGIN * max(width, height)
    left, top = max(0, x - margin), max(0, y - margin)
    right, bottom = min(record.width, x + width + margin), min(record.height, y + height + margin)
    image = Image.fromarray(read_image(record))
    return as_png(image.crop((round(left), round(top), round(right), round(bottom))))
