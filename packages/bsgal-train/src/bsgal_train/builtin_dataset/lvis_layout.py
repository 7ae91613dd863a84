"""Describe the built-in data set's images, objects and categories in the fields of LVIS v1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from bsgal_train.builtin_dataset.categories import (
    BUILTIN_CATEGORIES,
    MAX_COMMON_IMAGES,
    MAX_RARE_IMAGES,
)
from bsgal_train.builtin_dataset.scenes import SceneObject

__all__ = ["annotation_entry", "category_entries", "image_entry", "lvis_document"]

_DATE = "2026-01-01"
_LICENSES = [
    {
        "id": 1,
        "name": "CC BY-SA 4.0; the sources are named in CREDITS.md of bsgal_train.builtin_dataset",
        "url": "https://creativecommons.org/licenses/by-sa/4.0/",
    }
]


def lvis_document(
    description: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> dict[str, Any]:
    """Put the parts of an annotation file together.

    Its `info.frequency_limits` says which numbers of training images make a category rare, common
    or frequent; both ends are included and None is no limit.
    """
    return {
        "info": {
            "description": description,
            "version": "1.0",
            "year": 2026,
            "contributor": "bsgal",
            "url": "",
            "date_created": _DATE,
            "frequency_limits": {
                "r": [1, MAX_RARE_IMAGES],
                "c": [MAX_RARE_IMAGES + 1, MAX_COMMON_IMAGES],
                "f": [MAX_COMMON_IMAGES + 1, None],
            },
        },
        "licenses": _LICENSES,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def image_entry(
    image_id: int, file_name: str, image_hw: tuple[int, int], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Describe an image in which exactly the given categories occur."""
    absent = {item.category_id for item in BUILTIN_CATEGORIES} - set(category_ids)
    return {
        "id": image_id,
        "file_name": file_name,
        "coco_url": file_name,
        "flickr_url": "",
        "height": image_hw[0],
        "width": image_hw[1],
        "license": 1,
        "date_captured": _DATE,
        "neg_category_ids": sorted(absent),
        "not_exhaustive_category_ids": [],
    }


def annotation_entry(annotation_id: int, image_id: int, item: SceneObject) -> dict[str, Any]:
    """Describe an object: its visible pixels as compressed RLE, their area and tight box (xywh)."""
    rle = coco_mask.encode(np.asfortranarray(item.mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": item.category_id,
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "area": int(coco_mask.area(rle)),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


def category_entries(train_annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Describe the categories, with their counts in the training images as LVIS has them."""
    image_ids: dict[int, list[int]] = {item.category_id: [] for item in BUILTIN_CATEGORIES}
    for annotation in train_annotations:
        image_ids[annotation["category_id"]].append(annotation["image_id"])
    return [
        {
            "id": item.category_id,
            "name": item.name,
            "synset": item.synset,
            "synonyms": list(item.synonyms),
            "def": item.definition,
            "image_count": len(set(image_ids[item.category_id])),
            "instance_count": len(image_ids[item.category_id]),
            "frequency": item.frequency,
        }
        for item in BUILTIN_CATEGORIES
    ]
