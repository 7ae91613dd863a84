"""Copy-paste as plain values: what command lines and recipes hold, and what gets written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bsgal_paste._blend import BlendMode
from bsgal_paste._copy_paste import CopyPaste
from bsgal_paste._pool import InstancePool
from bsgal_paste._samplers import CategoryBalancedSampler
from bsgal_paste._scale import NormalScale, ScaleRule, ScaleStatistics, UniformScale
from bsgal_paste._visibility import OfficialVisibility, VisibilityRule, VisibleShare


@dataclass(frozen=True, slots=True, kw_only=True)
class PasteConfig:
    """Hold the settings of a `CopyPaste` with a category-balanced sampler."""

    count_range: tuple[int, int] = (0, 20)
    """Instances per image, uniform, upper end exclusive."""
    scale_range: tuple[float, float] | None = None
    """Range of the square root of an instance's share of the image; None draws from the normal
    distribution of its category in the annotations."""
    aspect_range: tuple[float, float] = (0.8, 1.2)
    """Range of the factor on width / height."""
    flip_prob: float = 0.5
    """Probability of a horizontal mirror image."""
    visibility: Literal["share", "official"] = "share"
    """`share`: `VisibleShare` with the two limits below. `official`: `OfficialVisibility`."""
    min_visible_frac: float = 0.1
    """Smallest visible share of an instance's area, for `share`."""
    min_visible_px: int = 1
    """Smallest number of visible pixels, for `share`."""
    blend_mode: BlendMode = "hard"
    """How pixels are combined."""

    def build(
        self,
        pool: InstancePool,
        statistics: ScaleStatistics | None = None,
        *,
        on_corrupt: Literal["raise", "skip"] = "raise",
    ) -> CopyPaste:
        """Build the paster.

        Args:
            pool: Where instances come from, matched to the annotations.
            statistics: Scales of the annotations; needed unless `scale_range` is set.
            on_corrupt: What to do about an unreadable instance.

        Raises:
            ValueError: A setting is out of range, or both or neither of `statistics` and
                `scale_range` are given.
        """
        if (statistics is None) == (self.scale_range is None):
            raise ValueError("give either `statistics` or set `scale_range`, and not both")
        if self.visibility not in ("share", "official"):
            raise ValueError(f"`visibility` must be 'share' or 'official', got {self.visibility!r}")
        scale: ScaleRule
        if self.scale_range is not None:
            scale = UniformScale(scale_range=self.scale_range)
        else:
            assert statistics is not None
            scale = NormalScale(statistics=statistics)
        visibility: VisibilityRule = OfficialVisibility()
        if self.visibility == "share":
            visibility = VisibleShare(
                min_visible_frac=self.min_visible_frac, min_visible_px=self.min_visible_px
            )
        return CopyPaste(
            pool,
            CategoryBalancedSampler(pool, count_range=self.count_range),
            scale,
            aspect_range=self.aspect_range,
            flip_prob=self.flip_prob,
            visibility=visibility,
            blend_mode=self.blend_mode,
            on_corrupt=on_corrupt,
        )


PRESETS: dict[str, PasteConfig] = {
    "default": PasteConfig(),
    "xpaste": PasteConfig(visibility="official"),
}
"""`xpaste` is the recipe that X-Paste and BSGAL share; `default` differs in the visibility rule."""
