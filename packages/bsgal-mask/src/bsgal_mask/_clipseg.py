"""Masks of what a word names, with CLIPSeg through transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from bsgal_mask._category_text import check_template, text_of
from bsgal_mask._checkpoint import resized_logits, sigmoid
from bsgal_mask._pretrained import Loading, Pretrained
from bsgal_mask._segmenter import Image, SoftMask, check_images

if TYPE_CHECKING:
    import torch


class ClipSegSegmenter(Pretrained):
    """Find what the category's name says with CLIPSeg (Lüddecke and Ecker, CVPR 2022).

    The model's map is enlarged while it still holds logits, which keeps outlines from becoming
    blocky; then come the sigmoid and, as X-Paste does, a stretch of the probabilities to [0, 1],
    because the published models are rarely sure of anything. A stretched map always finds
    something: choose or filter by CLIP score.

    Args:
        model: See `Pretrained`, for example `"CIDAS/clipseg-rd64-refined"`.
        template: The text that is looked for; `{}` stands for the category's name.
        stretch: Whether to stretch the probabilities to [0, 1]; a constant map becomes zero.
        min_peak: Probability, before the stretch, that some pixel must reach; nothing was found
            otherwise.
        name: The method's name in the manifest.
        **loading: See `Pretrained`: revision, device, dtype and batch size.

    Raises:
        MissingModelError: The libraries or the model are not installed; the message says how to.
        ValueError: A setting is impossible, or the files hold another kind of model.
    """

    model_class = "CLIPSegForImageSegmentation"
    extra = "clipseg"
    has_text = True
    default_batch_size = 4

    def __init__(
        self,
        model: str | Path,
        *,
        template: str = "a photo of a {}",
        stretch: bool = True,
        min_peak: float = 0.0,
        name: str = "clipseg",
        **loading: Unpack[Loading],
    ) -> None:
        check_template(template)
        if not 0 <= min_peak <= 1:
            raise ValueError(f"`min_peak` must lie in [0, 1], got {min_peak}")
        self.name = name
        self._template, self._stretch, self._min_peak = template, stretch, min_peak
        super().__init__(model, **loading)
        self._conditions: dict[str, torch.Tensor] = {}

    def config(self) -> Mapping[str, Any]:
        """Return what decides the masks."""
        return {
            **super().config(),
            "template": self._template,
            "stretch": self._stretch,
            "min_peak": self._min_peak,
        }

    def segment(self, images: Sequence[Image], category_names: Sequence[str]) -> list[SoftMask]:
        """See `Segmenter.segment`."""
        check_images(images, category_names)
        masks: list[SoftMask] = []
        for start in range(0, len(images), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            masks += self._segment_batch(images[chunk], category_names[chunk])
        return masks

    def _segment_batch(
        self, images: Sequence[Image], category_names: Sequence[str]
    ) -> list[SoftMask]:
        texts = [text_of(self._template, name) for name in category_names]
        with self._checkpoint.running():
            pixels, _ = self._checkpoint.pixel_values(images)
            logits = self._checkpoint.model(
                pixel_values=pixels, conditional_embeddings=self._condition(texts)
            ).logits
            maps = logits.reshape(len(images), *logits.shape[-2:]).float().cpu()
            return [
                self._soft_mask(resized_logits(single, image.shape[:2]))
                for single, image in zip(maps, images, strict=True)
            ]

    def _condition(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings (N, D) of the texts; each is computed once in a run."""
        import torch

        new = sorted(set(texts) - self._conditions.keys())
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            features = self._checkpoint.text_features(self._checkpoint.model.clip, part)
            self._conditions |= dict(zip(part, features, strict=True))
        return torch.stack([self._conditions[text] for text in texts])

    def _soft_mask(self, logits: SoftMask) -> SoftMask:
        mask = sigmoid(logits)
        low, high = float(mask.min()), float(mask.max())
        if high < self._min_peak:
            return np.zeros_like(mask)
        if self._stretch:
            if high == low:
                return np.zeros_like(mask)
            mask = (mask - low) / (high - low)
        return np.asarray(np.clip(mask, 0, 1), np.float32)
