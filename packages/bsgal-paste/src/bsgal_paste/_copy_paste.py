"""Copy-paste augmentation: draw the parameters, then apply them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bsgal_paste._annotated_image import AnnotatedImage
from bsgal_paste._apply import PasteResult, RemovalReason, RemovedInstance, apply_cutouts
from bsgal_paste._arrays import BoolArray, FloatArray, IntArray
from bsgal_paste._blend import BLEND_MODES, BlendMode
from bsgal_paste._cutout import Cutout, place, resize_rgba
from bsgal_paste._pool import InstancePool, PoolInstance
from bsgal_paste._samplers import Sampler
from bsgal_paste._scale import ScaleRule
from bsgal_paste._visibility import VisibilityRule, VisibleShare
from bsgal_paste.errors import CorruptInstanceError

MIN_SIDE_PX = 5


@dataclass(frozen=True, slots=True, eq=False)
class PasteParameters:
    """Hold everything random about one paste, for n instances in order.

    Attributes:
        positions: Int64 `(n,)`, positions in the pool.
        scales: Float64 `(n,)`, square root of the box's share of the image.
        aspect_factors: Float64 `(n,)`, factor on width / height.
        flips: Bool `(n,)`, mirror horizontally.
        centres_xy: Float64 `(n, 2)`, box centre as a share of width and height.
    """

    positions: IntArray
    scales: FloatArray
    aspect_factors: FloatArray
    flips: BoolArray
    centres_xy: FloatArray


class CopyPaste:
    """Paste instances of a pool into annotated images.

    `PRESETS["xpaste"].build(pool, statistics)` gives the recipe that X-Paste and BSGAL share.

    Args:
        pool: Where instances come from; its category ids must be those of the targets
            (`pool.match(categories)`).
        sampler: Chooses how many instances and which.
        scale: Chooses their size.
        aspect_range: The width / height of the box is multiplied by a factor drawn uniformly
            from this range; the area stays.
        flip_prob: Probability of a horizontal mirror image.
        visibility: Decides what stays once others lie over it.
        blend_mode: How pixels are combined: `hard` or `alpha`.
        on_corrupt: Whether an unreadable instance raises, or is left out and listed in the
            result's `removed` with the reason `corrupt`.

    Raises:
        ValueError: An argument is out of range, or `scale` cannot serve a category of the pool.
    """

    def __init__(
        self,
        pool: InstancePool,
        sampler: Sampler,
        scale: ScaleRule,
        *,
        aspect_range: tuple[float, float] = (0.8, 1.2),
        flip_prob: float = 0.5,
        visibility: VisibilityRule | None = None,
        blend_mode: BlendMode = "hard",
        on_corrupt: Literal["raise", "skip"] = "raise",
    ) -> None:
        if not 0 < aspect_range[0] <= aspect_range[1]:
            raise ValueError(f"`aspect_range` must be 0 < low <= high, got {aspect_range}")
        if not 0 <= flip_prob <= 1:
            raise ValueError(f"`flip_prob` must be in [0, 1], got {flip_prob}")
        if blend_mode not in BLEND_MODES:
            raise ValueError(f"`blend_mode` must be one of {BLEND_MODES}, got {blend_mode!r}")
        if on_corrupt not in ("raise", "skip"):
            raise ValueError(f"`on_corrupt` must be 'raise' or 'skip', got {on_corrupt!r}")
        scale.check(pool.category_ids)
        self.pool = pool
        self.sampler = sampler
        self.scale = scale
        self.aspect_range = aspect_range
        self.flip_prob = flip_prob
        self.visibility: VisibilityRule = visibility or VisibleShare()
        self.blend_mode: BlendMode = blend_mode
        self.on_corrupt = on_corrupt

    def __call__(self, target: AnnotatedImage, rng: np.random.Generator) -> PasteResult:
        """Paste into one image: `sample_parameters`, then `apply`.

        Raises:
            CorruptInstanceError: A drawn instance cannot be read and `on_corrupt` is `raise`.
        """
        parameters = self.sample_parameters(target.image_hw, target.category_ids, rng)
        return self.apply(target, parameters)

    def sample_parameters(
        self,
        image_hw: tuple[int, int],
        target_category_ids: IntArray,
        rng: np.random.Generator,
    ) -> PasteParameters:
        """Draw all that is random; no image is read."""
        positions = self.sampler.sample(rng, target_category_ids)
        n = len(positions)
        return PasteParameters(
            positions=positions,
            scales=self.scale.sample(self.pool.category_ids_of(positions), image_hw, rng),
            aspect_factors=rng.uniform(*self.aspect_range, size=n),
            flips=rng.random(n) < self.flip_prob,
            centres_xy=rng.random((n, 2)),
        )

    def apply(self, target: AnnotatedImage, parameters: PasteParameters) -> PasteResult:
        """Paste with given parameters; the same arguments give the same bytes.

        Raises:
            CorruptInstanceError: An instance cannot be read and `on_corrupt` is `raise`.
        """
        cutouts: list[Cutout] = []
        removed: list[RemovedInstance] = []
        for i, position in enumerate(parameters.positions.tolist()):
            placed = self._cutout(position, i, parameters, target.image_hw)
            if isinstance(placed, Cutout):
                cutouts.append(placed)
            else:
                category_id = int(self.pool.category_ids_of([position])[0])
                instance_id = self.pool.instance_id(position)
                removed.append(RemovedInstance(placed, category_id, instance_id, -1, 0.0))
        return apply_cutouts(
            target,
            cutouts,
            visibility=self.visibility,
            blend_mode=self.blend_mode,
            removed=removed,
        )

    def _cutout(
        self, position: int, i: int, parameters: PasteParameters, image_hw: tuple[int, int]
    ) -> Cutout | RemovalReason:
        try:
            instance = self.pool.read(position)
        except CorruptInstanceError:
            if self.on_corrupt == "raise":
                raise
            return "corrupt"
        width, height = target_size_wh(
            instance, float(parameters.scales[i]), float(parameters.aspect_factors[i]), image_hw
        )
        if min(width, height) < MIN_SIDE_PX:
            return "too_small"
        if width >= image_hw[1] or height >= image_hw[0]:
            return "too_large"
        rgba = resize_rgba(instance.rgba, width, height)
        if parameters.flips[i]:
            rgba = rgba[:, ::-1]
        centre_x, centre_y = parameters.centres_xy[i] * (image_hw[1], image_hw[0])
        cutout = place(
            rgba,
            # Thresholded after resizing: before, a soft rim would widen or eat the mask.
            rgba[..., 3] >= instance.label_mask_threshold,
            left_px=round(centre_x - width / 2),
            top_px=round(centre_y - height / 2),
            image_hw=image_hw,
            category_id=instance.category_id,
            instance_id=instance.instance_id,
        )
        return "outside" if cutout is None else cutout


def target_size_wh(
    instance: PoolInstance, scale: float, aspect_factor: float, image_hw: tuple[int, int]
) -> tuple[int, int]:
    """Compute the size of an instance's box: area s^2 H W, its own aspect times the factor.

    Returns:
        Width and height in whole pixels, rounded down as in the released code.
    """
    area = scale**2 * image_hw[0] * image_hw[1]
    aspect = instance.rgba.shape[1] / instance.rgba.shape[0] * aspect_factor
    width = (area * aspect) ** 0.5
    return int(width), int(width / aspect)
