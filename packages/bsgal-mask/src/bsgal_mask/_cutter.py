"""Everything between an image with its masks and its pool row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._choice import Candidates, Choice, Chosen
from bsgal_mask._clean_up import CleanUp
from bsgal_mask._edges import Edges
from bsgal_mask._filters import Filter
from bsgal_mask._image_set import ImageRow
from bsgal_mask._images import encode_rgba
from bsgal_mask._jsonl import Row
from bsgal_mask._own_alpha import AlphaSegmenter
from bsgal_mask._scores import confidence
from bsgal_mask._segmenter import Image, Segmenter, SoftMask
from bsgal_mask._similarity import SimilarityRule

CLIP_SCORE = "clip-score"
"""Reason code of images below the CLIP bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmented:
    """One image with the mask of each method, in the run's order."""

    source: ImageRow
    image: Image
    masks: Sequence[SoftMask]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """One image's row as far as it is known, and the alpha and label mask that it is about."""

    row: Row
    image: Image
    alpha: Image
    label: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutter:
    """The rules of a run; see `build_pool` for what each is."""

    methods: Sequence[Segmenter]
    choice: Choice
    filters: Sequence[Filter]
    similarity: SimilarityRule | None
    clean_up: CleanUp
    edges: Edges
    label_mask_threshold: int

    def config(self) -> dict[str, Any]:
        """Return everything that decides the rows, as JSON values."""
        return {
            "methods": {method.name: dict(method.config()) for method in self.methods},
            "choose": dict(self.choice.config()),
            "filters": [dict(rule.config()) for rule in self.filters],
            "similarity": None if self.similarity is None else dict(self.similarity.config()),
            "clean_up": self.clean_up.config(),
            "edges": self.edges.config(),
            "label_mask_threshold": self.label_mask_threshold,
        }

    def dropped(self, source: ImageRow, reason: str | None) -> Row:
        """Return the row of an image without a mask."""
        return {
            "instance_id": source.sample_id,
            "category_id": source.category_id,
            "category_name": source.category_name,
            "sample_id": source.sample_id,
            "prompt": source.prompt,
            "file": None,
            "label_mask_threshold": self.label_mask_threshold,
            "method": None,
            "scores": {method.name: None for method in self.methods},
            "agreement": None,
            "clip_score": None,
            "clip_similarity": None,
            "area_frac": None,
            "bbox_xywh": None,
            "status": "dropped",
            "reason": reason,
            "sha256": None,
        }

    def cut(self, batch: Sequence[Segmented]) -> list[tuple[Row, bytes | None]]:
        """Choose, clean, filter and crop one mask of each image.

        Returns:
            Each image's row, and the PNG of one that passed every rule but perhaps the CLIP bar.
        """
        candidates = [self._candidates(segmented) for segmented in batch]
        chosen = self.choice.choose(candidates)
        cuts = [self._cut(*pair) for pair in zip(batch, chosen, strict=True)]
        self._compare_with_real([cut for cut in cuts if cut.row["reason"] is None])
        return [self._finish(cut) for cut in cuts]

    def _candidates(self, segmented: Segmented) -> Candidates:
        labels = {
            method.name: self._label(_alpha_of(mask))
            for method, mask in zip(self.methods, segmented.masks, strict=True)
        }
        return Candidates(
            image=segmented.image, category_name=segmented.source.category_name, labels=labels
        )

    def _label(self, alpha: Image) -> NDArray[np.bool_]:
        return np.asarray(alpha >= self.label_mask_threshold)

    def _cut(self, segmented: Segmented, chosen: Chosen) -> Cut:
        masks = {
            method.name: mask for method, mask in zip(self.methods, segmented.masks, strict=True)
        }
        image = segmented.image
        mask = masks[chosen.method]
        if chosen.method != AlphaSegmenter.name:
            mask = self.edges.refined(image, mask)
        alpha = _alpha_of(mask)
        alpha = self.clean_up.apply(alpha, self.label_mask_threshold)
        label = self._label(alpha)
        row = self.dropped(segmented.source, None) | {
            "method": chosen.method,
            "scores": {name: _rounded(confidence(mask)) for name, mask in masks.items()},
            "agreement": _rounded(chosen.agreement),
            "clip_score": _rounded(chosen.clip_score),
            "area_frac": _rounded(float(label.mean())),
        }
        if label.any():
            row["bbox_xywh"] = _bounding_box_xywh(alpha)
            reasons = (rule.reason_to_drop(label, image) for rule in self.filters)
            row["reason"] = chosen.reason or next((reason for reason in reasons if reason), None)
        else:
            row["reason"] = "empty: no object was found"
        return Cut(row=row, image=image, alpha=alpha, label=label)

    def _compare_with_real(self, cuts: Sequence[Cut]) -> None:
        """Fill in the similarity of images that passed the filters."""
        if self.similarity is None or not cuts:
            return
        similarities = self.similarity.similarities(
            [cut.image for cut in cuts],
            [cut.label for cut in cuts],
            [cut.row["category_id"] for cut in cuts],
        )
        for cut, similarity in zip(cuts, similarities, strict=True):
            cut.row["clip_similarity"] = _rounded(similarity)
            cut.row["reason"] = self.similarity.reason_to_drop(similarity)

    def _finish(self, cut: Cut) -> tuple[Row, bytes | None]:
        if cut.row["reason"] is not None:
            return cut.row, None
        x, y, width, height = cut.row["bbox_xywh"]
        crop = slice(y, y + height), slice(x, x + width)
        image = cut.image
        if cut.row["method"] != AlphaSegmenter.name:
            image = self.edges.recoloured(image, cut.alpha)
        png = encode_rgba(image[crop], cut.alpha[crop])
        bar, score = self.choice.category_bar, cut.row["clip_score"]
        if bar is None or score is None or score >= bar.min_score:
            return cut.row | {"status": "kept"}, png
        reason = f"{CLIP_SCORE}: {score:.4f}, at least {bar.min_score:g} is required"
        return cut.row | {"reason": reason}, png


def _alpha_of(mask: SoftMask) -> Image:
    return np.rint(mask * 255).astype(np.uint8)


def _bounding_box_xywh(alpha: Image) -> list[int]:
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
