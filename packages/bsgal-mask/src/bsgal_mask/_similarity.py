"""Keep generated objects that look like real ones of their category, by CLIP's eye."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._clip import Clip
from bsgal_mask._clip_choice import on_plain
from bsgal_mask._files import sha256_of, write_atomically
from bsgal_mask._real_objects import RealObject, read_real_objects, real_crops
from bsgal_mask._segmenter import Image
from bsgal_mask.errors import RealCropError

_BLACK = 0
# What reading a damaged archive or array raises, found by damaging files.
_CACHE_ERRORS = (
    OSError, ValueError, KeyError, EOFError, SyntaxError, TypeError, RuntimeError, MemoryError,
    OverflowError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


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
            objects = read_real_objects(path, root, max_per_category)
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
    clip: Clip, objects: Sequence[RealObject], max_image_px: int
) -> dict[int, NDArray[np.float32]]:
    features = clip.image_features(real_crops(objects, max_image_px), margin_value=_BLACK)
    sums: dict[int, NDArray[np.float64]] = {}
    counts: Counter[int] = Counter()
    for found, feature in zip(objects, features, strict=True):
        sums[found.category_id] = sums.get(found.category_id, 0) + feature.astype(np.float64)
        counts[found.category_id] += 1
    return {key: (total / counts[key]).astype(np.float32) for key, total in sums.items()}


def _read_cache(path: Path, key: str) -> dict[int, NDArray[np.float32]] | None:
    """Return the means of a cache that was made under the same key; None if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            cache = {
                name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")))
                for name in ("key", "category_ids", "means")
            }
    except FileNotFoundError:
        return None
    except _CACHE_ERRORS as error:
        raise _no_cache(path, str(error)) from None
    if str(cache["key"]) != key:
        return None
    category_ids, means = cache["category_ids"], cache["means"]
    if category_ids.dtype != np.int64 or category_ids.ndim != 1 or (category_ids < 0).any():
        raise _no_cache(path, "its category ids are none")
    if means.dtype != np.float32 or means.ndim != 2 or len(means) != len(category_ids):
        raise _no_cache(path, f"it holds {means.dtype} {means.shape} for {len(category_ids)} ids")
    if not np.isfinite(means).all():
        raise _no_cache(path, "its features are not finite")
    return dict(zip(category_ids.tolist(), means, strict=True))


def _no_cache(path: Path, why: str) -> RealCropError:
    return RealCropError(
        f"{path} is not a cache of real objects' features ({why}); remove it, or name another file"
    )


def _write_cache(path: Path, key: str, means: Mapping[int, NDArray[np.float32]]) -> None:
    stream = io.BytesIO()
    rows = np.stack([*means.values()]) if means else np.zeros((0, 0), np.float32)
    np.savez(stream, key=key, category_ids=np.array([*means], np.int64), means=rows)
    write_atomically(path, stream.getvalue())
