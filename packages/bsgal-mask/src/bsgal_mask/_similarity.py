"""Keep generated objects that look like real ones of their category, by CLIP's eye."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_mask._clip import Clip
from bsgal_mask._clip_choice import on_plain
from bsgal_mask._files import read_file, sha256_of, stays_inside, write_atomically
from bsgal_mask._images import decode_image
from bsgal_mask._segmenter import Image
from bsgal_mask.errors import RealCropError

_BLACK = 0
# DiverGen's crops: this much of the surroundings, blurred by a box filter of this width.
_MARGIN_PX, _BLUR_PX = 40, 10


class RealCrops:
    """The mean CLIP features of each category's real objects.

    The mean cosine between an object and all real ones of its category is the object's product
    with the mean of their unit-length features; so the mean is all that is kept.

    Args:
        clip: The model that made the features.
        means: The mean features, float32 (D,), of each category id.
        config: What identifies them, as JSON values.
    """

    def __init__(
        self, clip: Clip, means: Mapping[int, NDArray[np.float32]], config: Mapping[str, Any]
    ) -> None:
        self.clip = clip
        self.means = means
        self._config = config

    def config(self) -> Mapping[str, Any]:
        """Return what decides the features."""
        return {**self.clip.config(), **self._config}

    @classmethod
    def from_lvis(
        cls,
        clip: Clip,
        annotations: str | Path,
        image_dir: str | Path,
        *,
        max_per_category: int = 100,
        max_image_px: int = 64_000_000,
        cache: str | Path | None = None,
    ) -> RealCrops:
        """Compute the features of annotated objects.

        A crop is an object's box with 40 px around it, blurred outside of the mask, as DiverGen
        makes it. Categories are matched to those of the pool by id.

        Args:
            clip: The model.
            annotations: An LVIS v1 JSON file; its segmentations must be polygons, as LVIS's are.
            image_dir: The folder that the images' `file_name`, or the last two parts of their
                `coco_url`, lead into.
            max_per_category: Objects of a category that are used: the first so many by id.
            max_image_px: Larger images (width times height) are refused.
            cache: A `.npz` file that keeps the features. It is read where it was made with the
                same model, annotations and number, and written anew otherwise.

        Raises:
            RealCropError: The annotations or an image cannot be used; the message says which.
        """
        if max_per_category < 1:
            raise ValueError(f"`max_per_category` must be at least 1, got {max_per_category}")
        path, root = Path(annotations), Path(image_dir)
        try:
            config = {"annotations_sha256": sha256_of(path), "max_per_category": max_per_category}
        except OSError as error:
            raise RealCropError(f"cannot read {path} ({error.strerror})") from None
        key = json.dumps({**clip.config(), **config}, sort_keys=True)
        means = None if cache is None else _read_cache(Path(cache), key)
        if means is None:
            objects = _objects_of(path, root, max_per_category)
            means = _mean_features(clip, objects, max_image_px)
            if cache is not None:
                _write_cache(Path(cache), key, means)
        return cls(clip, means, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarityRule:
    """Drop objects that look unlike the real ones of their category.

    DiverGen's rule: the object on black against every real crop of its category; the mean cosine
    must reach 0.6 (with ViT-L/14; its script's default is 0.7).
    """

    references: RealCrops
    """The real objects. An object whose category has none is kept, without a number."""
    min_similarity: float = 0.6
    """Least mean cosine, in [-1, 1]."""

    def __post_init__(self) -> None:
        """Refuse a bar that cannot be."""
        if not -1 <= self.min_similarity <= 1:
            raise ValueError(f"`min_similarity` must lie in [-1, 1], got {self.min_similarity}")

    def similarities(
        self,
        images: Sequence[Image],
        labels: Sequence[NDArray[np.bool_]],
        category_ids: Sequence[int],
    ) -> list[float | None]:
        """Return the mean cosine of each image's object with its category's real ones.

        Args:
            images: uint8 RGB arrays (H, W, 3).
            labels: Their label masks, bool (H, W).
            category_ids: Their categories.

        Returns:
            One number in [-1, 1] per image; None for a category without real objects.
        """
        means = [self.references.means.get(category_id) for category_id in category_ids]
        objects = (
            on_plain(image, label, _BLACK)
            for image, label, mean in zip(images, labels, means, strict=True)
            if mean is not None
        )
        features = self.references.clip.image_features(objects, margin_value=_BLACK)
        return [None if mean is None else float(next(features) @ mean) for mean in means]

    def reason_to_drop(self, similarity: float | None) -> str | None:
        """Return why an object of this similarity is dropped, as `code: detail`; or None."""
        if similarity is None or similarity >= self.min_similarity:
            return None
        return (
            f"similarity: {similarity:.4f} to the real objects of its category, "
            f"at least {self.min_similarity:g} is required"
        )

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return {**self.references.config(), "min_similarity": self.min_similarity}


def _mean_features(
    clip: Clip, objects: Sequence[_Object], max_image_px: int
) -> dict[int, NDArray[np.float32]]:
    features = clip.image_features(_crops(objects, max_image_px), margin_value=_BLACK)
    sums: dict[int, NDArray[np.float64]] = {}
    counts: Counter[int] = Counter()
    for found, feature in zip(objects, features, strict=True):
        sums[found.category_id] = sums.get(found.category_id, 0) + feature.astype(np.float64)
        counts[found.category_id] += 1
    return {key: (total / counts[key]).astype(np.float32) for key, total in sums.items()}


def _read_cache(path: Path, key: str) -> dict[int, NDArray[np.float32]] | None:
    """Return the means of a cache that was made under the same key; None if there is none."""
    try:
        with np.load(path, allow_pickle=False) as cache:
            if str(cache["key"]) != key:
                return None
            return dict(zip(cache["category_ids"].tolist(), cache["means"], strict=True))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RealCropError(
            f"{path} is not a cache of real objects' features ({error}); remove it, or name "
            "another file"
        ) from None


def _write_cache(path: Path, key: str, means: Mapping[int, NDArray[np.float32]]) -> None:
    stream = io.BytesIO()
    rows = np.stack([*means.values()]) if means else np.zeros((0, 0), np.float32)
    np.savez(stream, key=key, category_ids=np.array([*means], np.int64), means=rows)
    write_atomically(path, stream.getvalue())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Object:
    """One annotated object: where its image is, and its outline."""

    annotation_id: int
    category_id: int
    image: Path
    bbox_xywh: tuple[float, float, float, float]
    polygons: Sequence[Sequence[float]]


def _objects_of(path: Path, root: Path, max_per_category: int) -> list[_Object]:
    """Return the objects of an LVIS file, ordered by image so that each image is read once."""
    try:
        data = json.loads(path.read_bytes())
        files = {image["id"]: root / _file_name(image) for image in data["images"]}
        counts: dict[int, int] = defaultdict(int)
        objects = []
        for annotation in sorted(data["annotations"], key=lambda item: item["id"]):
            category_id = annotation["category_id"]
            counts[category_id] += 1
            if counts[category_id] > max_per_category:
                continue
            polygons = annotation["segmentation"]
            if not isinstance(polygons, list):
                raise RealCropError(
                    f"{path}: annotation {annotation['id']} has no polygons; LVIS's always have, "
                    "convert run-length masks first"
                )
            x, y, width, height = annotation["bbox"]
            found = _Object(
                annotation_id=annotation["id"],
                category_id=category_id,
                image=files[annotation["image_id"]],
                bbox_xywh=(x, y, width, height),
                polygons=polygons,
            )
            objects.append(found)
    except OSError as error:
        raise RealCropError(f"cannot read {path} ({error.strerror})") from None
    except RealCropError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RealCropError(
            f"{path} is not an LVIS annotation file ({type(error).__name__}: {error})"
        ) from None
    return sorted(objects, key=lambda found: str(found.image))


def _file_name(image: Mapping[str, Any]) -> str:
    name = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])
    if not stays_inside(name):
        raise RealCropError(f"the image name {name!r} is not a plain path inside the image folder")
    return str(name)


def _crops(objects: Sequence[_Object], max_image_px: int) -> Iterator[Image]:
    path, image = None, np.zeros((1, 1, 3), np.uint8)
    for found in objects:
        if found.image != path:
            path = found.image
            try:
                image = decode_image(read_file(path), max_image_px=max_image_px)
            except ValueError as error:
                raise RealCropError(f"{path}: {error}") from None
        yield _crop(image, found)


def _crop(image: Image, found: _Object) -> Image:
    """Return an object's box with its surroundings, blurred outside of the mask."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for polygon in found.polygons:
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
        # OpenCV names a pixel by its centre, LVIS by its upper left corner.
        cv2.fillPoly(mask, [np.rint(corners - 0.5).astype(np.int32)], 1)
    x, y, width, height = found.bbox_xywh
    rows = slice(max(0, int(y) - _MARGIN_PX), math.ceil(y + height) + _MARGIN_PX)
    columns = slice(max(0, int(x) - _MARGIN_PX), math.ceil(x + width) + _MARGIN_PX)
    crop = image[rows, columns]
    if not crop.size:
        raise RealCropError(
            f"annotation {found.annotation_id}: its box {found.bbox_xywh} lies outside of the image"
        )
    blurred = cv2.blur(crop, (_BLUR_PX, _BLUR_PX))
    return np.where(mask[rows, columns, None] > 0, crop, blurred)
