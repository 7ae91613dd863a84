"""Copy-paste as plain values: what command lines and recipes hold, and what gets written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bsgal_paste._blend import BlendMode
from bsgal_paste._colour import ColourJitter
from bsgal_paste._compose import ComposeConfig
from bsgal_paste._copy_paste import CopyPaste, Order, Position, Source, check_source
from bsgal_paste._donors import Donors
from bsgal_paste._pool import InstancePool
from bsgal_paste._samplers import CategoryBalancedSampler
from bsgal_paste._scale import NormalScale, ScaleRule, ScaleStatistics, UniformScale
from bsgal_paste._visibility import OfficialVisibility, VisibilityRule, VisibleShare


@dataclass(frozen=True, slots=True, kw_only=True)
class PasteConfig:
    """Hold the settings of a `CopyPaste` with a category-balanced sampler."""

    source: Source = "pool"
    """Where instances come from: a pool, other annotated images (`self`), both, or nowhere."""
    count_range: tuple[int, int] = (0, 20)
    """Pool instances per image, uniform, the second number exclusive."""
    scale_range: tuple[float, float] | None = None
    """Range of the square root of a pool instance's share of the image; None draws from the normal
    distribution of its category in the annotations."""
    aspect_range: tuple[float, float] = (0.8, 1.2)
    """Range of the factor on width / height of pool instances."""
    flip_prob: float = 0.5
    """Probability of a horizontal mirror image."""
    rotation_range_deg: tuple[float, float] = (0.0, 0.0)
    """Range of the turn of pool instances, degrees counter-clockwise."""
    colour_prob: float = 0.0
    """Probability that a pool instance's colours change, as `ColourJitter` says."""
    position: Position = "uniform"
    """Where pool instances may be; `inside` keeps their boxes inside the image."""
    order: Order = "drawn"
    """Which pool instances lie on top."""
    min_side_px: int = 5
    """Pool instances with a shorter side are left out, in pixels."""
    donor_scale_range: tuple[float, float] = (0.1, 2.0)
    """Range of the factor on the size of the image that instances are copied from."""
    max_donor_instances: int = 100
    """Most instances copied from one image."""
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
        pool: InstancePool | None = None,
        statistics: ScaleStatistics | None = None,
        *,
        donors: Donors | None = None,
        on_corrupt: Literal["raise", "skip"] = "raise",
    ) -> CopyPaste:
        """Build the paster.

        Args:
            pool: Where instances come from, matched to the annotations; if `source` has a pool.
            statistics: Scales of the annotations; needed for a pool unless `scale_range` is set.
            donors: Images to copy from; if `source` is `self` or `both`.
            on_corrupt: What to do about an unreadable instance.

        Raises:
            ValueError: A setting is out of range, `source` and what is given for it disagree, or
                both or neither of `statistics` and `scale_range` are given.
        """
        if self.visibility not in ("share", "official"):
            raise ValueError(f"`visibility` must be 'share' or 'official', got {self.visibility!r}")
        check_source(self.source, {"pool": pool}, {"donors": donors})
        visibility: VisibilityRule = OfficialVisibility()
        if self.visibility == "share":
            visibility = VisibleShare(
                min_visible_frac=self.min_visible_frac, min_visible_px=self.min_visible_px
            )
        return CopyPaste(
            pool,
            None if pool is None else CategoryBalancedSampler(pool, count_range=self.count_range),
            None if pool is None else self._scale(statistics),
            source=self.source,
            donors=donors,
            aspect_range=self.aspect_range,
            flip_prob=self.flip_prob,
            rotation_range_deg=self.rotation_range_deg,
            colour_jitter=ColourJitter(prob=self.colour_prob) if self.colour_prob else None,
            position=self.position,
            order=self.order,
            min_side_px=self.min_side_px,
            donor_scale_range=self.donor_scale_range,
            max_donor_instances=self.max_donor_instances,
            visibility=visibility,
            blend_mode=self.blend_mode,
            on_corrupt=on_corrupt,
        )

    @property
    def uses_pool(self) -> bool:
        """Say whether `source` has a pool."""
        return self.source in ("pool", "both")

    @property
    def uses_donors(self) -> bool:
        """Say whether `source` has other annotated images."""
        return self.source in ("self", "both")

    def _scale(self, statistics: ScaleStatistics | None) -> ScaleRule:
        if (statistics is None) == (self.scale_range is None):
            raise ValueError("give either `statistics` or set `scale_range`, and not both")
        if self.scale_range is not None:
            return UniformScale(scale_range=self.scale_range)
        assert statistics is not None
        return NormalScale(statistics=statistics)


PRESETS: dict[str, PasteConfig] = {
    "default": PasteConfig(),
    "xpaste": PasteConfig(visibility="official"),
    "simple_copy_paste": PasteConfig(source="self", min_visible_frac=0.0, blend_mode="gaussian"),
}
"""`xpaste` is the recipe that X-Paste and BSGAL share; `default` differs in the visibility rule.

`simple_copy_paste` is that of Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation
Method for Instance Segmentation" (CVPR 2021, section 3): a random subset of another image's
objects, that image scaled by 0.1 to 2.0 (large scale jittering) and mirrored half of the time,
masks smoothed by a Gaussian, only fully hidden objects removed. The target must be jittered
likewise by its loader. We place the scaled image anywhere, and smooth inwards only, so that pixels
outside the masks stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold all tables of a settings file."""

    paste: PasteConfig = field(default_factory=PasteConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
