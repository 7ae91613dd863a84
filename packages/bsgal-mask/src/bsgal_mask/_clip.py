"""CLIP features of images and texts, through transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._pretrained import Loading, Pretrained
from bsgal_mask._segmenter import Image

if TYPE_CHECKING:
    import torch


class Clip(Pretrained):
    """A CLIP (Radford et al., ICML 2021) for one or more rules to share.

    Its arguments are those of `Pretrained`; X-Paste and DiverGen score with
    `"openai/clip-vit-large-patch14"`.
    """

    model_class = "CLIPModel"
    extra = "clip"
    has_text = True
    default_batch_size = 16

    def __init__(self, model: str | Path, **loading: Unpack[Loading]) -> None:
        super().__init__(model, **loading)
        self._texts: dict[str, NDArray[np.float32]] = {}

    def image_features(
        self, images: Iterable[Image], *, margin_value: int
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the unit-length features (D,) of images.

        Args:
            images: uint8 RGB arrays (H, W, 3); `batch_size` of them are in memory at a time.
            margin_value: Grey level, 0 to 255, of the margins that make an image square: the
                model sees a square, and nothing is cut off.

        Yields:
            float32 (D,).
        """
        iterator = iter(images)
        while chunk := list(islice(iterator, self.batch_size)):
            squares = [_square(image, margin_value) for image in chunk]
            with self._checkpoint.running():
                pixels, _ = self._checkpoint.pixel_values(squares)
                model = self._checkpoint.model
                pooled = model.vision_model(pixel_values=pixels).pooler_output
                yield from _unit_length(model.visual_projection(pooled))

    def text_features(self, text: str) -> NDArray[np.float32]:
        """Return the unit-length features, float32 (D,), of a text; each is computed once."""
        if text not in self._texts:
            with self._checkpoint.running():
                features = self._checkpoint.text_features(self._checkpoint.model, [text])
            self._texts[text] = _unit_length(features)[0]
        return self._texts[text]


def _square(image: Image, margin_value: int) -> Image:
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    square = np.full((side, side, 3), margin_value, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def _unit_length(features: torch.Tensor) -> NDArray[np.float32]:
    rows = features.float().cpu().numpy()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
