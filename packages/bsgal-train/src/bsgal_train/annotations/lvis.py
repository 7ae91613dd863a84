"""Read an annotation file in LVIS v1 layout, checked once and for all at loading."""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from bsgal_train.annotations.layout_check import layout_problems
from bsgal_train.annotations.packed_sequence import PackedSequence
from bsgal_train.errors import (
    AnnotationError,
    AnnotationFormatError,
    EmptyAnnotationsError,
    MissingImagesError,
)

__all__ = [
    "FrequencyLimits",
    "ImageRecord",
    "InstanceRecord",
    "LvisAnnotations",
    "LvisCategory",
    "read_lvis_json",
]

Frequency = Literal["r", "c", "f"]
Segmentation = list[list[float]] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class FrequencyLimits:
    """Say up to how many training images a category counts as rare, and as common.

    Attributes:
        rare_max_images: Largest image count of a rare category; LVIS has 10.
        common_max_images: Largest image count of a common category; LVIS has 100.
    """

    rare_max_images: int = 10
    common_max_images: int = 100

    def group_of(self, image_count: int) -> Frequency:
        """Give the group of a category that is in `image_count` training images."""
        if image_count <= self.rare_max_images:
            return "r"
        return "c" if image_count <= self.common_max_images else "f"


@dataclass(frozen=True, slots=True)
class LvisCategory:
    """Describe one category.

    Attributes:
        category_id: As in the annotation file, at least 0.
        class_index: Position in the order of `category_id`, from 0 without gaps.
        name: As in the file.
        synonyms: Other names, may be empty.
        frequency: `r` rare, `c` common, `f` frequent in the training images.
        image_count: Images of this file that hold the category, counted.
        instance_count: Instances of the category in this file, counted.
    """

    category_id: int
    class_index: int
    name: str
    synonyms: tuple[str, ...]
    frequency: Frequency
    image_count: int
    instance_count: int


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """Hold one annotated object.

    Attributes:
        annotation_id: As in the file.
        class_index: See `LvisCategory`.
        bbox_xywh: Absolute pixels.
        segmentation: Polygons `[[x0, y0, x1, y1, ...], ...]`, or a COCO run-length encoding.
    """

    annotation_id: int
    class_index: int
    bbox_xywh: tuple[float, float, float, float]
    segmentation: Segmentation


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """Hold one image's place, size in pixels and objects."""

    image_id: int
    path: Path
    height: int
    width: int
    instances: tuple[InstanceRecord, ...]


@dataclass(frozen=True, slots=True)
class LvisAnnotations:
    """Hold a checked annotation file. Build one with `load` or `from_document`.

    Attributes:
        path: The annotation file.
        categories: Sorted by `category_id`.
        images: In the file's order; records are rebuilt when asked for, so that loader processes
            share their memory.
        class_index_of: Class index of each category id.
        image_indices_of_class: For each class index, the sorted positions in `images` of the
            images that hold it.
        frequency_limits: The limits that the frequency groups follow: as stated in the file's
            info, or LVIS's own where the groups had to be computed; None where the file gives
            groups but not their limits.
    """

    path: Path
    categories: tuple[LvisCategory, ...]
    images: Sequence[ImageRecord]
    class_index_of: Mapping[int, int]
    image_indices_of_class: tuple[npt.NDArray[np.int64], ...]
    frequency_limits: FrequencyLimits | None

    @classmethod
    def load(cls, json_path: str | Path, image_root: str | Path) -> LvisAnnotations:
        """Read an annotation file and check it against the images on disk.

        Args:
            json_path: LVIS v1 JSON.
            image_root: Folder that `file_name` is relative to; where an image has no
                `file_name`, the end of its `coco_url` is looked for (`train2017/x.jpg`, `x.jpg`).

        Raises:
            AnnotationFormatError: It is not LVIS v1 JSON; the message names the entry.
            UnknownCategoryError: An annotation has a category that the file lacks.
            EmptyAnnotationsError: There are no images or no annotations.
            MissingImagesError: Images are not on disk.
            AnnotationError: The file itself is missing or cannot be read.
        """
        path = Path(json_path)
        return cls.from_document(read_lvis_json(path), path, Path(image_root))

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], path: Path, image_root: Path
    ) -> LvisAnnotations:
        """Check a parsed annotation file like `load`.

        Args:
            document: What `read_lvis_json` returned; its segmentations are shared, not copied.
            path: Where it was read from, for messages.
            image_root: See `load`.

        Raises:
            AnnotationError: As `load`.
        """
        for problem in layout_problems(document, path):
            raise problem
        if not document["images"] or not document["annotations"]:
            raise EmptyAnnotationsError(
                f"{path} has {len(document['images'])} images and "
                f"{len(document['annotations'])} annotations; both must be more than 0"
            )
        paths = _image_paths(document["images"], image_root)
        class_index_of = {
            category_id: index
            for index, category_id in enumerate(sorted(c["id"] for c in document["categories"]))
        }
        instances = _instances_by_image(document, class_index_of)
        image_indices = _image_indices_of_class(instances, len(class_index_of))
        limits = _stated_limits(document, path)
        if limits is None and "frequency" not in document["categories"][0]:
            limits = FrequencyLimits()
        return cls(
            path=path,
            categories=_categories(document, instances, image_indices, limits),
            images=PackedSequence(
                ImageRecord(image["id"], image_path, image["height"], image["width"], own)
                for image, image_path, own in zip(document["images"], paths, instances, strict=True)
            ),
            class_index_of=class_index_of,
            image_indices_of_class=image_indices,
            frequency_limits=limits,
        )


class _RepeatedKeyError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise _RepeatedKeyError(keys.most_common(1)[0][0])
    return found


def read_lvis_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        AnnotationError: The file is missing or cannot be read.
        AnnotationFormatError: It does not hold a JSON object, or a key is repeated in one.
    """
    try:
        with path.open("rb") as file:
            document = json.load(file, object_pairs_hook=_object)
    except FileNotFoundError:
        raise AnnotationError(
            f"there is no annotation file at {path}; check the path (a relative one starts at "
            f"{Path.cwd()})"
        ) from None
    except OSError as error:
        raise AnnotationError(f"the annotation file {path} cannot be read: {error}") from error
    except _RepeatedKeyError as error:
        raise AnnotationFormatError(
            f"{path} has the key {error.args[0]!r} twice in one object; keep one of them"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AnnotationFormatError(
            f"{path} is not JSON ({error}); it may be cut off, fetch or write it again"
        ) from error
    if not isinstance(document, dict):
        raise AnnotationFormatError(
            f"{path} must hold a JSON object, it holds a {type(document).__name__}"
        )
    return cast(dict[str, Any], document)


def _image_paths(images: list[dict[str, Any]], root: Path) -> list[Path]:
    """Find every image below `root`, listing each folder once."""
    if not root.is_dir():
        raise MissingImagesError(f"the image folder {root} does not exist; check image_root")
    listed: dict[Path, set[str]] = {}

    def exists(path: Path) -> bool:
        if path.parent not in listed:
            folder = path.parent
            listed[folder] = {f.name for f in folder.iterdir()} if folder.is_dir() else set()
        return path.name in listed[path.parent]

    paths, missing = [], []
    for image in images:
        candidates = [root / name for name in _relative_names(image)]
        found = next(filter(exists, candidates), None)
        if found is None:
            missing.append(str(candidates[0]))
        else:
            paths.append(found)
    if missing:
        shown = "\n  ".join(missing[:10])
        rest = f"\n  and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise MissingImagesError(
            f"{len(missing)} of {len(images)} images are not on disk; check image_root ({root}) "
            f"or fetch them:\n  {shown}{rest}",
            tuple(missing),
        )
    return paths


def _relative_names(image: Mapping[str, Any]) -> list[str]:
    names = [image["file_name"]] if image.get("file_name") else []
    if image.get("coco_url"):
        parts = image["coco_url"].split("/")
        names += ["/".join(parts[-2:]), parts[-1]]
    return names


def _instances_by_image(
    document: Mapping[str, Any], class_index_of: Mapping[int, int]
) -> list[tuple[InstanceRecord, ...]]:
    by_image: dict[int, list[InstanceRecord]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        by_image[annotation["image_id"]].append(
            InstanceRecord(
                annotation["id"],
                class_index_of[annotation["category_id"]],
                (float(x), float(y), float(width), float(height)),
                annotation["segmentation"],
            )
        )
    return [tuple(instances) for instances in by_image.values()]


def _image_indices_of_class(
    instances: Sequence[tuple[InstanceRecord, ...]], n_classes: int
) -> tuple[npt.NDArray[np.int64], ...]:
    indices: list[list[int]] = [[] for _ in range(n_classes)]
    for image_index, own in enumerate(instances):
        for class_index in {instance.class_index for instance in own}:
            indices[class_index].append(image_index)
    return tuple(np.array(found, dtype=np.int64) for found in indices)


def _categories(
    document: Mapping[str, Any],
    instances: Sequence[tuple[InstanceRecord, ...]],
    image_indices: Sequence[npt.NDArray[np.int64]],
    limits: FrequencyLimits | None,
) -> tuple[LvisCategory, ...]:
    instance_counts = Counter(instance.class_index for own in instances for instance in own)
    categories = []
    for class_index, category in enumerate(sorted(document["categories"], key=lambda c: c["id"])):
        image_count = len(image_indices[class_index])
        frequency = category.get("frequency")
        if frequency is None:
            assert limits is not None, "load falls back to LVIS's limits"
            frequency = limits.group_of(image_count)
        categories.append(
            LvisCategory(
                category_id=category["id"],
                class_index=class_index,
                name=category["name"],
                synonyms=tuple(category.get("synonyms", ())),
                frequency=frequency,
                image_count=image_count,
                instance_count=instance_counts[class_index],
            )
        )
    return tuple(categories)


def _stated_limits(document: Mapping[str, Any], path: Path) -> FrequencyLimits | None:
    """Read `{"r": [1, 3], "c": [4, 20], "f": [21, null]}` from the file's info."""
    stated = (document.get("info") or {}).get("frequency_limits")
    if stated is None:
        return None
    try:
        limits = FrequencyLimits(operator.index(stated["r"][1]), operator.index(stated["c"][1]))
    except (KeyError, IndexError, TypeError):
        raise AnnotationFormatError(
            f"{path}: info.frequency_limits must look like "
            f'{{"r": [1, 10], "c": [11, 100], "f": [101, null]}}, it is {stated!r}'
        ) from None
    return limits
