"""Real photographs as backgrounds, from the files that scikit-image and scikit-learn install.

The files are read from the installed packages' own folders; nothing is downloaded. Each photograph
is split at a vertical line: crops for training come from its left part and crops for validation
from its right part, so that no background pixel is in both.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["PHOTOGRAPHS", "Background", "Photograph", "load_photographs", "sample_background"]

Split = Literal["train", "val"]

# Share of each photograph's width that belongs to training.
_TRAIN_SHARE = 0.62
# Shortest side of a crop, in pixels of the photograph and as a share of the largest square.
_SHORTEST_CROP_PX = 110
_CROP_SHARE_RANGE = (0.6, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """A photograph inside an installed package."""

    package: str
    """Import name of the package."""
    file: str
    """Path below the package's folder."""
    is_grey: bool = False
    """Whether it has no colour of its own; such a crop gets a random tint."""
    is_texture: bool = False
    """Whether up and down look alike; such a crop gets a random quarter turn."""

    @property
    def path(self) -> Path:
        """Where the photograph is installed.

        Raises:
            FileNotFoundError: The package is not installed or does not hold the file.
        """
        spec = importlib.util.find_spec(self.package)
        path = Path(spec.origin).parent / self.file if spec and spec.origin else None
        if path is None or not path.is_file():
            raise FileNotFoundError(
                f"the photograph {self.file} of the package {self.package} is missing; install "
                "scikit-image and scikit-learn from their wheels (pip install scikit-image "
                "scikit-learn)"
            )
        return path


PHOTOGRAPHS = (
    Photograph(package="skimage", file="data/astronaut.png"),
    Photograph(package="skimage", file="data/chelsea.png"),
    Photograph(package="skimage", file="data/coffee.png"),
    Photograph(package="skimage", file="data/hubble_deep_field.jpg"),
    Photograph(package="skimage", file="data/rocket.jpg"),
    Photograph(package="skimage", file="data/ihc.png"),
    Photograph(package="skimage", file="data/camera.png", is_grey=True),
    Photograph(package="skimage", file="data/coins.png", is_grey=True),
    Photograph(package="skimage", file="data/brick.png", is_grey=True, is_texture=True),
    Photograph(package="skimage", file="data/grass.png", is_grey=True, is_texture=True),
    Photograph(package="skimage", file="data/gravel.png", is_grey=True, is_texture=True),
    Photograph(package="sklearn", file="datasets/images/china.jpg"),
    Photograph(package="sklearn", file="datasets/images/flower.jpg"),
)
"""Photographs that show no object of a built-in category and whose terms are stated."""


@dataclass(frozen=True, slots=True)
class Background:
    """A photograph ready to be cropped."""

    photograph: Photograph
    image: NDArray[np.uint8]
    """uint8 RGB of shape (H, W, 3)."""
    sha256: str
    """Hash of the installed file."""


def load_photographs() -> tuple[Background, ...]:
    """Read every photograph of `PHOTOGRAPHS`.

    Raises:
        FileNotFoundError: A photograph is not installed; the message says what to install.
    """
    backgrounds = []
    for photograph in PHOTOGRAPHS:
        data = photograph.path.read_bytes()
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        backgrounds.append(Background(photograph, image, hashlib.sha256(data).hexdigest()))
    return tuple(backgrounds)


def sample_background(
    rng: np.random.Generator, backgrounds: tuple[Background, ...], split: Split, side_px: int
) -> NDArray[np.uint8]:
    """Cut a random square from a random photograph and vary its colours.

    Args:
        rng: Source of randomness.
        backgrounds: Photographs to choose from.
        split: Which part of the photograph to cut from.
        side_px: Side of the result in pixels.

    Returns:
        uint8 RGB of shape (side_px, side_px, 3).
    """
    background = backgrounds[rng.integers(len(backgrounds))]
    crop = _random_crop(rng, background.image, split)
    shrinks = crop.shape[0] > side_px
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    crop = cv2.resize(crop, (side_px, side_px), interpolation=interpolation)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if background.photograph.is_texture:
        crop = np.rot90(crop, k=int(rng.integers(4)))
    return _vary_colours(rng, crop, tint=0.22 if background.photograph.is_grey else 0.08)


def _random_crop(
    rng: np.random.Generator, image: NDArray[np.uint8], split: Split
) -> NDArray[np.uint8]:
    """Cut a random square from the split's part of a photograph."""
    boundary = round(image.shape[1] * _TRAIN_SHARE)
    part = image[:, :boundary] if split == "train" else image[:, boundary:]
    largest = min(part.shape[:2])
    side = max(round(largest * rng.uniform(*_CROP_SHARE_RANGE)), min(_SHORTEST_CROP_PX, largest))
    top = int(rng.integers(part.shape[0] - side + 1))
    left = int(rng.integers(part.shape[1] - side + 1))
    return part[top : top + side, left : left + side]


def _vary_colours(
    rng: np.random.Generator, image: NDArray[np.uint8], tint: float
) -> NDArray[np.uint8]:
    """Scale brightness, contrast and the three channels at random."""
    brightness = rng.uniform(0.75, 1.2)
    contrast = rng.uniform(0.7, 1.1)
    channel_gains = rng.uniform(1 - tint, 1 + tint, size=3)
    values = image.astype(np.float32) / np.float32(255.0)
    mean = values.mean(dtype=np.float64)
    values = (values - mean) * contrast + mean
    values = np.clip(values * brightness * channel_gains, 0.0, 1.0)
    varied: NDArray[np.uint8] = np.rint(values * 255.0).astype(np.uint8)
    return varied
