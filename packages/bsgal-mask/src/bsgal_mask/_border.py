"""Cut out an object that stands before a background without a model file: colours and GrabCut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bsgal_mask._edges import coverage_from_colours
from bsgal_mask._segmenter import Image, SoftMask, check_images
from bsgal_mask.errors import SegmentationError

_Array: TypeAlias = NDArray[Any]
_MIN_SIDE_PX = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Background:
    """The background's colours as normal distributions in Lab."""

    means: list[_Array]
    precisions: list[_Array]

    def distance(self, lab: _Array) -> _Array:
        """Return the Mahalanobis distances (...) of colours (..., 3) to the nearest of ours."""
        squared = [
            np.einsum("...i,ij,...j->...", lab - mean, precision, lab - mean)
            for mean, precision in zip(self.means, self.precisions, strict=True)
        ]
        return np.asarray(np.sqrt(np.maximum(np.min(squared, axis=0), 0)))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BorderSegmenter:
    """Take the colours along the image's border for the background, refine with GrabCut.

    In Lab, a smooth gradient fitted to the border strip is taken off the image; what is left of
    the strip are the background's colours, a few clusters. A pixel far from all of them starts as
    object, wherever it lies, so that a ring's hole starts as background; GrabCut (Rother,
    Kolmogorov and Blake, 2004, in OpenCV) then moves the outline to the image's edges, and the
    colours along it say how much of each pixel is object. Made for prompts that ask for a plain
    background: an object of the background's own colour cannot be found, except where the object
    encloses it: an enclosed region is a hole only if its median colour is a background colour.
    Equal images and seeds give equal masks.

    OpenCV draws from a generator of its own, which every call seeds with `seed`.
    """

    name: ClassVar[str] = "border"

    border_frac: float = 0.04
    """Width of the border strip as a share of the shorter side."""
    n_colours: int = 3
    """Colour clusters that make up the background."""
    min_colour_frac: float = 0.15
    """A cluster with a smaller share of the border is taken for an object that touches it."""
    min_distance: float = 3.0
    """A pixel nearer than this to a cluster, in its standard deviations, is background."""
    max_distance: float = 6.0
    """A pixel farther than this from all clusters starts as object."""
    hole_distance: float = 1.5
    """An enclosed region farther than this from the background is no hole but object."""
    grabcut_iterations: int = 3
    """Rounds of GrabCut; 0 leaves it out."""
    edge_sigma_px: float = 0.8
    """Softness of the outline: standard deviation of the blur of the binary result, in pixels."""
    edge_from_colours: bool = True
    """Whether the outline's pixels get, where object and background differ enough in colour, the
    share of object that their own colour shows, instead of the blur's value."""
    max_side_px: int = 512
    """Larger images are segmented at this size and the mask is scaled up."""
    seed: int = 0
    """Seed of OpenCV's generator."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not 0 < self.border_frac < 0.5:
            raise ValueError(f"`border_frac` must lie in (0, 0.5), got {self.border_frac}")
        if not 0 <= self.min_colour_frac < 1:
            raise ValueError(f"`min_colour_frac` must lie in [0, 1), got {self.min_colour_frac}")
        if not 0 < self.min_distance <= self.max_distance:
            raise ValueError(
                "`min_distance` must be positive and at most `max_distance`, "
                f"got {self.min_distance} and {self.max_distance}"
            )
        for field, least in (("n_colours", 1), ("grabcut_iterations", 0), ("max_side_px", 32)):
            if getattr(self, field) < least:
                raise ValueError(f"`{field}` must be at least {least}, got {getattr(self, field)}")
        for field in ("edge_sigma_px", "hole_distance"):
            if getattr(self, field) < 0:
                raise ValueError(f"`{field}` must not be negative, got {getattr(self, field)}")

    def config(self) -> Mapping[str, Any]:
        """Return the settings."""
        return dataclasses.asdict(self)

    def segment(self, images: Sequence[Image], category_names: Sequence[str]) -> list[SoftMask]:
        """See `Segmenter.segment`."""
        check_images(images, category_names)
        try:
            return [self._segment(image) for image in images]
        except cv2.error as error:
            raise SegmentationError(f"OpenCV: {error}") from error

    def _segment(self, image: Image) -> SoftMask:
        image_hw = image.shape[:2]
        if min(image_hw) < _MIN_SIDE_PX:
            return np.zeros(image_hw, np.float32)
        cv2.setRNGSeed(self.seed)
        small = _shrink(image, self.max_side_px)
        strip = _border_strip(small.shape[:2], self.border_frac)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        lab = lab - _gradient(lab, strip)
        background = self._background(lab[strip])
        distance = background.distance(lab)
        far = distance > self._threshold(distance)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
        seeds = cv2.morphologyEx(far.astype(np.uint8), cv2.MORPH_OPEN, kernel)
        if not seeds.any():
            return np.zeros(image_hw, np.float32)
        certain = cv2.erode(seeds, kernel, iterations=3) > 0
        certain &= distance > self.max_distance
        found = self._grabcut(small, seeds > 0, certain, strip)
        for region in _enclosed_regions(found):
            if background.distance(np.median(lab[region], axis=0)) > self.hole_distance:
                found |= region
        soft = found.astype(np.float32)
        if self.edge_sigma_px:
            soft = cv2.GaussianBlur(soft, (0, 0), self.edge_sigma_px)
        if self.edge_from_colours:
            soft = coverage_from_colours(small, soft)
        if soft.shape != image_hw:
            soft = cv2.resize(soft, image_hw[::-1], interpolation=cv2.INTER_LINEAR)
        return np.clip(soft, 0, 1)

    def _background(self, samples: _Array) -> _Background:
        """Return the colours of the border strip's pixels (N, 3) that count as background."""
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
        n_colours = min(self.n_colours, len(samples))
        _, labels, _ = cv2.kmeans(samples, n_colours, None, criteria, 2, cv2.KMEANS_PP_CENTERS)
        counts = np.bincount(labels[:, 0], minlength=n_colours)
        kept = counts >= min(self.min_colour_frac * len(samples), counts.max())
        clusters = [samples[labels[:, 0] == label] for label in np.flatnonzero(kept)]
        return _Background(
            means=[cluster.mean(axis=0) for cluster in clusters],
            # A spread of at least 2 Lab units per axis: less cannot be seen.
            precisions=[
                np.linalg.inv(np.cov(cluster.T, bias=True) + 4 * np.eye(3)) for cluster in clusters
            ],
        )

    def _threshold(self, distance: _Array) -> float:
        """Return the distance that best splits the image in two, within the allowed range."""
        scale = 255 / (2 * self.max_distance)
        levels = np.clip(distance * scale, 0, 255).astype(np.uint8)
        otsu, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        return float(np.clip(otsu / scale, self.min_distance, self.max_distance))

    def _grabcut(self, image: Image, seeds: _Array, certain: _Array, strip: _Array) -> _Array:
        """Return the bool mask (H, W) that GrabCut makes of the first guess."""
        trimap = np.where(seeds, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        trimap[certain] = cv2.GC_FGD
        trimap[strip & ~seeds] = cv2.GC_BGD
        background = (trimap == cv2.GC_BGD) | (trimap == cv2.GC_PR_BGD)
        if self.grabcut_iterations and background.any():
            models = np.zeros((1, 65)), np.zeros((1, 65))
            # GrabCut reads three channels in any order; its distances do not depend on it.
            cv2.grabCut(
                image, trimap, None, *models, self.grabcut_iterations, cv2.GC_INIT_WITH_MASK
            )
        return np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _shrink(image: Image, max_side_px: int) -> Image:
    height, width = image.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return image
    resolution_wh = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, resolution_wh, interpolation=cv2.INTER_AREA), np.uint8)


def _border_strip(image_hw: tuple[int, int], border_frac: float) -> _Array:
    width_px = max(2, round(border_frac * min(image_hw)))
    strip = np.ones(image_hw, bool)
    strip[width_px:-width_px, width_px:-width_px] = False
    return strip


def _gradient(lab: _Array, strip: _Array) -> _Array:
    """Return the quadratic colour surface (H, W, 3) that fits most of the border strip.

    Reweighted least squares with Cauchy weights: an object that touches the border, some units of
    Lab away from the rest, hardly bends the surface.
    """
    height, width = strip.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    design, samples = terms[strip], lab[strip].astype(np.float64)
    residuals = samples - np.median(samples, axis=0)
    for _ in range(6):
        weights = 1 / (1 + (residuals**2).sum(axis=1, keepdims=True) / 3.0**2)
        normal = design.T @ (weights * design) + 1e-9 * np.eye(design.shape[1])
        coefficients = np.linalg.solve(normal, design.T @ (weights * samples))
        residuals = samples - design @ coefficients
    return (terms @ coefficients).astype(np.float32)


def _enclosed_regions(found: _Array) -> Iterator[_Array]:
    """Yield the mask of each 4-connected region outside `found` that the border does not reach."""
    n_regions, indices = cv2.connectedComponents((~found).astype(np.uint8), connectivity=4)
    outer = np.concatenate([indices[0], indices[-1], indices[:, 0], indices[:, -1]])
    for index in np.setdiff1d(np.arange(1, n_regions), outer):
        yield indices == index
