"""Choose the method whose cut-out CLIP recognises best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._category_text import check_template, text_of
from bsgal_mask._choice import Candidates, CategoryBar, Chosen, mean_agreements
from bsgal_mask._clip import Clip
from bsgal_mask._segmenter import Image

_WHITE = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipChoice:
    """Take the method whose object, put on white, is closest to its category's name in CLIP.

    X-Paste's rule, with its text. With one method there is no choice, but the score is recorded
    and the bar applies. Scores of different CLIP models are not comparable.
    """

    clip: Clip
    """The model."""
    template: str = "a photo of {}"
    """The text; `{}` stands for the category's name."""
    category_bar: CategoryBar = field(default_factory=CategoryBar)
    """What the score must reach."""

    def __post_init__(self) -> None:
        """Refuse a template without a place for the name."""
        check_template(self.template)

    def check(self, methods: Sequence[str]) -> None:
        """See `Choice.check`; any methods will do."""

    def choose(self, batch: Sequence[Candidates]) -> list[Chosen]:
        """See `Choice.choose`; an empty mask has no score."""
        features = self.clip.image_features(self._on_white(batch), margin_value=_WHITE)
        chosen = []
        for candidates in batch:
            text = self.clip.text_features(text_of(self.template, candidates.category_name))
            scores = {
                method: float(next(features) @ text)
                for method, label in candidates.labels.items()
                if label.any()
            }
            method = max(scores, key=scores.__getitem__, default=next(iter(candidates.labels)))
            agreement = mean_agreements(candidates.labels).get(method)
            chosen.append(Chosen(method, agreement, clip_score=scores.get(method)))
        return chosen

    def _on_white(self, batch: Sequence[Candidates]) -> Iterator[Image]:
        for candidates in batch:
            for label in candidates.labels.values():
                if label.any():
                    yield on_plain(candidates.image, label, _WHITE)

    def config(self) -> Mapping[str, Any]:
        """Return the settings, with what the model is."""
        return {
            "rule": "clip",
            **self.clip.config(),
            "template": self.template,
            "category_bar": self.category_bar.config(),
        }


def on_plain(image: Image, label: NDArray[np.bool_], grey_level: int) -> Image:
    """Return an RGB image (H, W, 3) whose pixels outside a mask (H, W) have one grey level."""
    return np.where(label[..., None], image, np.uint8(grey_level))
