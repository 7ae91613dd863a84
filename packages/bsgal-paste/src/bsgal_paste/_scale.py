"""How large a pasted instance is: statistics of real objects, and the rules that use them.

The scale s of an object is the square root of its box's share of the image: s = sqrt(w h / (W H)).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Protocol

import numpy as np

from bsgal_paste._arrays import FloatArray, IntArray
from bsgal_paste._lvis import LvisSource, load_lvis
from bsgal_paste._manifest import parse_json, write_atomically
from bsgal_paste.errors import AnnotationError

SCALE_SCHEMA = "bsgal.scale_statistics/2"


@dataclass(frozen=True, slots=True)
class ScaleEntry:
    """Hold mean and standard deviation (population form) of the scales of `count` objects."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, scales: FloatArray) -> ScaleEntry:
        """Summarise at least one scale."""
        return cls(float(scales.mean()), float(scales.std()), len(scales))


@dataclass(frozen=True, slots=True)
class ScaleStatistics:
    """Hold the scale of real objects per category.

    Attributes:
        categories: Entry per category id that has annotations.
        groups: Entry over all annotations of a frequency group (`r`, `c`, `f`), and of the whole
            file under `all`.
        frequencies: Frequency group of every category of the file.
    """

    categories: dict[int, ScaleEntry]
    groups: dict[str, ScaleEntry]
    frequencies: dict[int, str]

    @classmethod
    def from_annotations(cls, lvis: LvisSource) -> ScaleStatistics:
        """Measure an LVIS v1 annotation file.

        Boxes without area are left out, and crowd regions, which are no objects.

        Args:
            lvis: The parsed JSON or its path.

        Raises:
            AnnotationError: The file is no LVIS JSON, or refers to something it does not hold.
        """
        annotations = load_lvis(lvis)
        image_areas = {
            image["id"]: float(image["width"]) * image["height"] for image in annotations.images
        }
        frequencies = {
            int(category["id"]): str(category.get("frequency", "all"))
            for category in annotations.categories
        }
        scales: dict[int, list[float]] = {}
        for annotation in annotations.annotations:
            _, _, width, height = annotation["bbox"]
            if width > 0 and height > 0 and not annotation.get("iscrowd"):
                share = width * height / image_areas[annotation["image_id"]]
                scales.setdefault(int(annotation["category_id"]), []).append(share**0.5)
        if not scales:
            raise AnnotationError("the annotations hold no box with an area to measure scales on")
        by_category = {key: np.array(scales[key]) for key in sorted(scales)}
        groups = {"all": ScaleEntry.of(np.concatenate(list(by_category.values())))}
        for group in sorted(set(frequencies.values()) - {"all"}):
            members = [s for key, s in by_category.items() if frequencies[key] == group]
            if members:
                groups[group] = ScaleEntry.of(np.concatenate(members))
        return cls(
            {key: ScaleEntry.of(values) for key, values in by_category.items()},
            groups,
            frequencies,
        )

    def of(self, category_id: int) -> ScaleEntry:
        """Give the entry of a category.

        A category of the file without annotations takes the pooled entry of its frequency
        group. (The released BSGAL code borrows the entry of a random category instead; a group
        mean is steadier and makes the draw depend on nothing else.)

        Raises:
            ValueError: The annotation file has no such category.
        """
        if category_id not in self.frequencies:
            raise ValueError(
                f"category {category_id} is not in the annotations that the scales were "
                "measured on; map the pool to them with `pool.match(categories)`"
            )
        if category_id in self.categories:
            return self.categories[category_id]
        return self.groups.get(self.frequencies[category_id], self.groups["all"])

    def save(self, path: str | Path) -> None:
        """Write the statistics as JSON with a hash of their own, atomically."""
        content = {
            "categories": {str(key): asdict(entry) for key, entry in self.categories.items()},
            "groups": {key: asdict(entry) for key, entry in self.groups.items()},
            "frequencies": {str(key): group for key, group in self.frequencies.items()},
        }
        whole = {"schema": SCALE_SCHEMA, "sha256": _sha256(content), **content}
        write_atomically(Path(path), json.dumps(whole, indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> ScaleStatistics:
        """Read what `save` wrote.

        Raises:
            ValueError: The file has another schema, or is damaged.
        """
        try:
            content = parse_json(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is {error}; measure the annotations again") from error
        content = content if isinstance(content, dict) else {}
        schema, sha256 = content.pop("schema", None), content.pop("sha256", None)
        if schema != SCALE_SCHEMA:
            raise ValueError(
                f"{path} has schema {shortened(schema)}, this version reads {SCALE_SCHEMA!r}"
            )
        if sha256 != _sha256(content):
            raise ValueError(f"{path} was changed since; measure the annotations again")
        return cls(
            {int(key): ScaleEntry(**entry) for key, entry in content["categories"].items()},
            {key: ScaleEntry(**entry) for key, entry in content["groups"].items()},
            {int(key): group for key, group in content["frequencies"].items()},
        )


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ScaleRule(Protocol):
    """Draw scales."""

    def check(self, category_ids: IntArray) -> None:
        """Raise ValueError if the rule cannot serve one of these categories."""

    def sample(
        self, category_ids: IntArray, image_hw: tuple[int, int], rng: np.random.Generator
    ) -> FloatArray:
        """Draw one scale per entry of `category_ids`, `(n,)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalScale:
    """Draw s ~ Normal(mean, std) of the category, clipped: the paper's rule."""

    statistics: ScaleStatistics
    """Means and standard deviations per category."""
    min_side_px: float = 10.0
    """s is at least this divided by the image's height."""
    max_scale: float = 0.5
    """s is at most this; it wins over `min_side_px` in a tiny image."""
    min_std: float = 0.0
    """Lower bound on the standard deviation; 0 leaves categories with one object at its scale."""

    def __post_init__(self) -> None:
        if not (self.min_side_px >= 0 and 0 < self.max_scale <= 1 and self.min_std >= 0):
            raise ValueError(
                "need `min_side_px` >= 0, 0 < `max_scale` <= 1 and `min_std` >= 0, got "
                f"{self.min_side_px}, {self.max_scale}, {self.min_std}"
            )

    def check(self, category_ids: IntArray) -> None:
        """Raise ValueError if the statistics lack one of these categories."""
        for category_id in category_ids.tolist():
            self.statistics.of(category_id)

    def sample(
        self, category_ids: IntArray, image_hw: tuple[int, int], rng: np.random.Generator
    ) -> FloatArray:
        """Draw one scale per entry of `category_ids`, `(n,)`."""
        entries = [self.statistics.of(category_id) for category_id in category_ids.tolist()]
        mean = np.array([entry.mean for entry in entries])
        std = np.maximum([entry.std for entry in entries], self.min_std)
        scale = mean + std * rng.standard_normal(len(entries))
        return np.clip(scale, min(self.min_side_px / image_hw[0], self.max_scale), self.max_scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformScale:
    """Draw s uniformly, whatever the category: for data without statistics."""

    scale_range: tuple[float, float] = (0.05, 0.3)
    """Smallest and largest s; the default is DiverGen's, for categories without statistics."""

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high <= 1:
            raise ValueError(f"`scale_range` must be 0 < low <= high <= 1, got {self.scale_range}")

    def check(self, category_ids: IntArray) -> None:
        """Accept any category."""

    def sample(
        self, category_ids: IntArray, image_hw: tuple[int, int], rng: np.random.Generator
    ) -> FloatArray:
        """Draw one scale per entry of `category_ids`, `(n,)`."""
        return rng.uniform(*self.scale_range, size=len(category_ids))
