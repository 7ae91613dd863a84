"""Index an LVIS annotation file for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_train.annotations import Frequency, read_lvis_json
from bsgal_train.annotations.layout_check import evaluation_problems

__all__ = ["EvaluatedCategory", "GroundTruth", "Objects", "contains"]


@dataclass(frozen=True, slots=True)
class EvaluatedCategory:
    """A category and how much of it the file has."""

    category_id: int
    name: str
    frequency: Frequency | None
    """None if the file does not state the groups."""
    n_images: int
    n_instances: int


@dataclass(frozen=True, eq=False, slots=True)
class Objects:
    """The N annotations that have an area, sorted by pair, then in the file's order.

    Attributes:
        pair: int64 (N,), image and category (`GroundTruth.pairs`).
        area: float64 (N,), as the file states it, square pixels.
        bbox_xywh: float64 (N, 4), pixels.
        segmentations: As they are in the file: polygons or run lengths.
    """

    pair: npt.NDArray[np.int64]
    area: npt.NDArray[np.float64]
    bbox_xywh: npt.NDArray[np.float64]
    segmentations: Sequence[Any]


@dataclass(frozen=True, eq=False, slots=True)
class GroundTruth:
    """What is known to be in the images, and what is known not to be.

    A pair, of an image and a category, is one number: the position of the image in `image_ids`
    times the number of categories, plus the position of the category in `category_ids`.
    """

    image_ids: npt.NDArray[np.int64]
    """Ids of the images, ascending."""
    image_hw: npt.NDArray[np.int64]
    """Shape (images, 2): their heights and widths."""
    category_ids: npt.NDArray[np.int64]
    """Ids of the categories, ascending."""
    categories: tuple[EvaluatedCategory, ...]
    """In the same order."""
    objects: Objects
    judged_pairs: npt.NDArray[np.int64]
    """Pairs for which the file says whether the category is in the image, ascending."""
    unfinished_pairs: npt.NDArray[np.int64]
    """Pairs in which not every object may be annotated, ascending."""

    @classmethod
    def load(cls, annotations: str | Path | Mapping[str, Any]) -> GroundTruth:
        """Index an annotation file, given by its path or as the object it holds.

        Raises:
            AnnotationError: The file is missing or cannot be read, or an entry is malformed; the
                message names the first.
        """
        if isinstance(annotations, Mapping):
            document, where = annotations, "`annotations`"
        else:
            document, where = read_lvis_json(Path(annotations)), str(annotations)
        for problem in evaluation_problems(document, where):
            raise problem
        images = {image["id"]: image for image in document["images"]}
        categories = {category["id"]: category for category in document["categories"]}
        image_ids = np.array(sorted(images), dtype=np.int64)
        category_ids = np.array(sorted(categories), dtype=np.int64)
        objects = _objects(document["annotations"], image_ids, category_ids)
        judged = _listed_pairs(document["images"], "neg_category_ids", image_ids, category_ids)
        return cls(
            image_ids=image_ids,
            image_hw=np.array(
                [(images[one]["height"], images[one]["width"]) for one in image_ids.tolist()],
                dtype=np.int64,
            ).reshape(-1, 2),
            category_ids=category_ids,
            categories=_categories(categories, category_ids, objects),
            objects=objects,
            judged_pairs=np.union1d(judged, objects.pair),
            unfinished_pairs=_listed_pairs(
                document["images"], "not_exhaustive_category_ids", image_ids, category_ids
            ),
        )

    def pairs(
        self, image_id: npt.NDArray[np.int64], category_id: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Number the pairs (N,) of known ids (N,)."""
        return _pairs(self.image_ids, self.category_ids, image_id, category_id)

    def image_hw_of(self, image_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give height and width (N, 2) of images by their known ids (N,)."""
        return self.image_hw[np.searchsorted(self.image_ids, image_id)]


def contains(
    ascending: npt.NDArray[np.int64], values: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Say which of the values (N,) are in a sorted array."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.bool_)
    position = np.searchsorted(ascending, values)
    found: npt.NDArray[np.bool_] = ascending[np.minimum(position, len(ascending) - 1)] == values
    return found


def _pairs(
    image_ids: npt.NDArray[np.int64],
    category_ids: npt.NDArray[np.int64],
    image_id: npt.NDArray[np.int64],
    category_id: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    image = np.searchsorted(image_ids, image_id)
    category = np.searchsorted(category_ids, category_id)
    pairs: npt.NDArray[np.int64] = image * len(category_ids) + category
    return pairs


def _listed_pairs(
    images: Sequence[Mapping[str, Any]],
    field: str,
    image_ids: npt.NDArray[np.int64],
    category_ids: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Number the pairs of the images with the categories in a list of theirs, ascending."""
    lengths = [len(image[field]) for image in images]
    image_id = np.repeat(np.array([image["id"] for image in images], dtype=np.int64), lengths)
    category_id = np.array([one for image in images for one in image[field]], dtype=np.int64)
    # Categories may be listed that the file does not define; nobody can predict them.
    is_known = contains(category_ids, category_id)
    pairs = _pairs(image_ids, category_ids, image_id[is_known], category_id[is_known])
    return np.unique(pairs)


def _objects(
    annotations: Sequence[Mapping[str, Any]],
    image_ids: npt.NDArray[np.int64],
    category_ids: npt.NDArray[np.int64],
) -> Objects:
    # As in LVIS's own evaluation, what has no area is not there.
    present = [annotation for annotation in annotations if annotation["area"] > 0]
    pair = _pairs(
        image_ids,
        category_ids,
        np.array([one["image_id"] for one in present], dtype=np.int64),
        np.array([one["category_id"] for one in present], dtype=np.int64),
    )
    order = np.argsort(pair, kind="stable")
    boxes = np.array([one["bbox"] for one in present], dtype=np.float64).reshape(-1, 4)
    return Objects(
        pair=pair[order],
        area=np.array([one["area"] for one in present], dtype=np.float64)[order],
        bbox_xywh=boxes[order],
        segmentations=[present[position]["segmentation"] for position in order.tolist()],
    )


def _categories(
    entries: Mapping[int, Mapping[str, Any]],
    category_ids: npt.NDArray[np.int64],
    objects: Objects,
) -> tuple[EvaluatedCategory, ...]:
    n_categories = len(category_ids)
    n_instances = np.bincount(objects.pair % n_categories, minlength=n_categories)
    n_images = np.bincount(np.unique(objects.pair) % n_categories, minlength=n_categories)
    return tuple(
        EvaluatedCategory(
            category_id=category_id,
            name=entries[category_id]["name"],
            frequency=entries[category_id].get("frequency"),
            n_images=int(n_images[index]),
            n_instances=int(n_instances[index]),
        )
        for index, category_id in enumerate(category_ids.tolist())
    )
