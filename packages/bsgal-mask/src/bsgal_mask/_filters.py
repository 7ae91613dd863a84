"""Rules that drop a cut-out by its mask's shape, or by the object's sharpness."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_mask._scores import sharpness
from bsgal_mask._segmenter import Image


class Filter(Protocol):
    """Keep or drop a mask."""

    def reason_to_drop(self, label: NDArray[np.bool_], image: Image) -> str | None:
        """Return why an image is dropped, as `code: detail`; None keeps it.

        Args:
            label: The bool label mask (H, W), never empty.
            image: The image, uint8 RGB (H, W, 3).
        """

    def config(self) -> Mapping[str, Any]:
        """Return the settings as JSON values."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AreaFilter:
    """Keep objects of a sensible size.

    The defaults are those with which X-Paste's pool was cleaned; BSGAL uses that pool.
    """

    min_frac: float = 0.05
    """Smallest share of the image's pixels."""
    max_frac: float = 0.95
    """Largest share of the image's pixels."""

    def __post_init__(self) -> None:
        """Refuse an empty or impossible range."""
        if not 0 <= self.min_frac < self.max_frac <= 1:
            raise ValueError(
                "`min_frac` and `max_frac` must satisfy 0 <= min_frac < max_frac <= 1, "
                f"got {self.min_frac} and {self.max_frac}"
            )

    def reason_to_drop(self, label: NDArray[np.bool_], image: Image) -> str | None:
        """See `Filter.reason_to_drop`."""
        area_frac = float(label.mean())
        if self.min_frac <= area_frac <= self.max_frac:
            return None
        return (
            f"area: {area_frac:.4f} of the image, "
            f"{self.min_frac:g} to {self.max_frac:g} is required"
        )

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return {"rule": "area", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BorderContactFilter:
    """Drop objects that the image's border cuts off."""

    max_frac: float = 0.05
    """Largest share of the image's outermost pixels that the object may cover."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.max_frac < 1:
            raise ValueError(f"`max_frac` must lie in [0, 1), got {self.max_frac}")

    def reason_to_drop(self, label: NDArray[np.bool_], image: Image) -> str | None:
        """See `Filter.reason_to_drop`."""
        outermost = np.ones_like(label)
        outermost[1:-1, 1:-1] = False
        covered_frac = float(label[outermost].mean())
        if covered_frac <= self.max_frac:
            return None
        return (
            f"border-contact: covers {covered_frac:.4f} of the image's border, "
            f"at most {self.max_frac:g} is allowed"
        )

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return {"rule": "border-contact", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PartsFilter:
    """Drop masks of too few or too many separate parts."""

    min_parts: int = 1
    """Fewest 8-connected parts."""
    max_parts: int | None = None
    """Most 8-connected parts; None sets no limit."""

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        if self.min_parts < 1 or (self.max_parts is not None and self.max_parts < self.min_parts):
            raise ValueError(
                "`min_parts` must be at least 1 and `max_parts` at least `min_parts`, "
                f"got {self.min_parts} and {self.max_parts}"
            )

    def reason_to_drop(self, label: NDArray[np.bool_], image: Image) -> str | None:
        """See `Filter.reason_to_drop`."""
        n_parts = cv2.connectedComponents(label.astype(np.uint8), connectivity=8)[0] - 1
        if n_parts >= self.min_parts and (self.max_parts is None or n_parts <= self.max_parts):
            return None
        most = "any number" if self.max_parts is None else self.max_parts
        return f"parts: {n_parts} separate parts, {self.min_parts} to {most} are required"

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return {"rule": "parts", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BlurFilter:
    """Drop objects that are out of focus."""

    min_sharpness: float = 2.0
    """Least `sharpness`, in grey levels. Smooth things are never very sharp: look at what a value
    drops before relying on it."""

    def __post_init__(self) -> None:
        """Refuse a bar that everything or nothing passes."""
        if not 0 < self.min_sharpness <= 255:
            raise ValueError(f"`min_sharpness` must lie in (0, 255], got {self.min_sharpness}")

    def reason_to_drop(self, label: NDArray[np.bool_], image: Image) -> str | None:
        """See `Filter.reason_to_drop`."""
        found = sharpness(image, label)
        if found >= self.min_sharpness:
            return None
        return f"blur: sharpness {found:.2f}, at least {self.min_sharpness:g} is required"

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return {"rule": "blur", **dataclasses.asdict(self)}
