"""Copy-paste inside a detectron2 dataset mapper; detectron2 itself is not imported.

A mapper calls it between its augmentations and `annotations_to_instances`:

    image, annotations, result = paste_annotations(image, annotations, epoch=e, image_id=i)
    instances = utils.annotations_to_instances(annotations, image.shape[:2], mask_format="bitmask")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bsgal_paste._annotated_image import AnnotatedImage, has_area_inside
from bsgal_paste._apply import PasteResult
from bsgal_paste._arrays import BoolArray, ByteArray
from bsgal_paste._copy_paste import CopyPaste, sample_rng
from bsgal_paste._lvis import decode_segmentation

# Values of detectron2's BoxMode.
_XYXY_ABS, _XYWH_ABS = 0, 1
# An augmentation that enlarges a small part of an image leaves polygons of the whole image behind.
_MARGIN = 64


class PasteAnnotations:
    """Paste instances into an image and its list of detectron2 annotations.

    The sample of image i in epoch e is `paste(target, sample_rng(seed, e, i))`, byte for byte,
    in whatever loader process.

    Args:
        paste: What to paste and how.
        category_ids: Category id of the annotation file for each class index, as the pool knows
            it; the inverse of the metadata's `thing_dataset_id_to_contiguous_id`.
        seed: Of everything random, at least 0.
        image_format: Order of the image's channels, as in `INPUT.FORMAT`.

    Raises:
        ValueError: Category ids repeat, the pool has one that is not among them, or `image_format`
            is unknown.
    """

    def __init__(
        self,
        paste: CopyPaste,
        category_ids: Sequence[int],
        *,
        seed: int,
        image_format: Literal["RGB", "BGR"] = "BGR",
    ) -> None:
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"`image_format` must be 'RGB' or 'BGR', got {image_format!r}")
        self._class_index_of = {int(c): index for index, c in enumerate(category_ids)}
        if len(self._class_index_of) != len(category_ids):
            raise ValueError("`category_ids` must be unique, one per class index")
        unknown = [i for i in paste.pool.category_ids.tolist() if i not in self._class_index_of]
        if unknown:
            raise ValueError(
                f"the pool has {len(unknown)} categories that are not in `category_ids` (ids "
                f"{unknown[:5]}); match it first: pool.match(categories)"
            )
        self._category_ids = np.asarray(category_ids, dtype=np.int64)
        self._paste = paste
        self._seed = seed
        self._image_format = image_format

    def __call__(
        self,
        image: npt.NDArray[np.uint8],
        annotations: Sequence[Mapping[str, Any]],
        *,
        epoch: int,
        image_id: int,
    ) -> tuple[ByteArray, list[dict[str, Any]], PasteResult]:
        """Paste into one image.

        Args:
            image: uint8 `(H, W, 3)`, after all augmentations that move pixels.
            annotations: With `bbox`, `bbox_mode` (XYXY_ABS or XYWH_ABS), `category_id` (class
                index from 0) and `segmentation` (polygons, run lengths or a mask `(H, W)`); for
                boxes alone, all of them without `segmentation`. Those without a visible pixel are
                left out. Crowd regions (`iscrowd`) are to be filtered out before.
            epoch: Any integer from 0 that is another one when the image comes again. In an
                infinite sampler such as detectron2's, which has no epochs, draw it where the
                mapper draws its augmentations: `int(np.random.randint(2**31))`, which detectron2
                seeds in every worker.
            image_id: Of the image.

        Returns:
            The image; the annotations, real ones first with what they held beside, masks as bool
            `(H, W)` (so that the mask format must be "bitmask"), boxes XYXY_ABS, pasted ones with
            `instance_id`; and the result, for provenance and the untouched original.

        Raises:
            ValueError: Keypoints are there, which a paste cannot keep in step; a box mode is
                unknown; some annotations have a segmentation and some do not.
        """
        target, used = self._target(image, annotations)
        result = self._paste(target, sample_rng(self._seed, epoch, image_id))
        pasted = result.image if self._image_format == "RGB" else result.image[..., ::-1]
        entries = []
        for i, source in enumerate(result.source_index.tolist()):
            entry = dict(used[source]) if source >= 0 else {"iscrowd": 0}
            entry |= {
                "bbox": result.boxes_xyxy[i],
                "bbox_mode": _XYXY_ABS,
                "category_id": self._class_index_of[int(result.category_ids[i])],
                "instance_id": result.instance_ids[i],
            }
            if not target.boxes_only:
                entry["segmentation"] = result.masks[i]
            entries.append(entry)
        return np.ascontiguousarray(pasted), entries, result

    def _target(
        self, image: npt.NDArray[np.uint8], annotations: Sequence[Mapping[str, Any]]
    ) -> tuple[AnnotatedImage, list[Mapping[str, Any]]]:
        rgb = image if self._image_format == "RGB" else np.ascontiguousarray(image[..., ::-1])
        if any("keypoints" in annotation for annotation in annotations):
            raise ValueError("annotations with keypoints cannot be pasted over; remove the key")
        n_masks = sum("segmentation" in annotation for annotation in annotations)
        if n_masks not in (0, len(annotations)):
            raise ValueError(
                f"{n_masks} of {len(annotations)} annotations have a segmentation; all or none must"
            )
        classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
        boxes = np.array([_box_xyxy(a) for a in annotations]).reshape(-1, 4)
        height, width = rgb.shape[:2]
        if annotations and not n_masks:
            kept = has_area_inside(boxes, (height, width))
            ids = self._category_ids[classes[kept]]
            target = AnnotatedImage.from_boxes(rgb, boxes[kept], ids)
        else:
            masks = np.zeros((len(annotations), height, width), dtype=bool)
            for mask, annotation in zip(masks, annotations, strict=True):
                mask[:] = _mask(annotation, height, width)
            kept = np.asarray(masks.any(axis=(1, 2)))
            ids = self._category_ids[classes[kept]]
            target = AnnotatedImage(rgb, masks[kept], ids, boxes_xyxy=boxes[kept])
        return target, [annotations[i] for i in np.flatnonzero(kept).tolist()]


def _box_xyxy(annotation: Mapping[str, Any]) -> list[float]:
    left, top, third, fourth = (float(value) for value in annotation["bbox"])
    mode = int(annotation["bbox_mode"])
    if mode == _XYXY_ABS:
        return [left, top, third, fourth]
    if mode == _XYWH_ABS:
        return [left, top, left + third, top + fourth]
    raise ValueError(f"`bbox_mode` must be XYXY_ABS (0) or XYWH_ABS (1), got {mode}")


def _mask(annotation: Mapping[str, Any], height: int, width: int) -> BoolArray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        if segmentation.shape != (height, width):
            raise ValueError(
                f"a mask of shape {segmentation.shape} does not fit the image of {height} x {width}"
            )
        return np.asarray(segmentation, dtype=bool)
    if not isinstance(segmentation, Mapping):
        # What detectron2 leaves of an object that was cropped away.
        if not len(segmentation):
            return np.zeros((height, width), dtype=bool)
        segmentation = [np.asarray(polygon, dtype=float).ravel() for polygon in segmentation]
        segmentation = [polygon.tolist() for polygon in segmentation]
    entry = {"id": annotation.get("id", "?"), "segmentation": segmentation}
    return decode_segmentation(entry, height, width, margin=_MARGIN)
