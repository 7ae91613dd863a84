"""Copy-paste augmentation: draw the parameters, then apply them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from bsgal_paste._annotated_image import AnnotatedImage
from bsgal_paste._apply import PasteResult, RemovalReason, RemovedInstance, apply_cutouts
from bsgal_paste._arrays import BoolArray, FloatArray, IntArray
from bsgal_paste._blend import BLEND_MODES, BlendMode
from bsgal_paste._colour import ColourJitter, change_colours
from bsgal_paste._cutout import Cutout, place, reshape_weighted, size_before_turning
from bsgal_paste._donors import DonorParameters, Donors, donor_cutouts
from bsgal_paste._pool import InstancePool, PoolInstance
from bsgal_paste._samplers import Sampler
from bsgal_paste._scale import ScaleRule
from bsgal_paste._visibility import VisibilityRule, VisibleShare
from bsgal_paste.errors import AnnotationError, CorruptInstanceError

Source: TypeAlias = Literal["pool", "self", "both", "none"]
"""Where pasted instances come from: a pool, other annotated images, both (those of the pool on
top), or nowhere."""
SOURCES: tuple[str, ...] = get_args(Source)
"""All values of `Source`."""

Position: TypeAlias = Literal["uniform", "inside"]
"""`uniform`: the box centre is uniform over the image, so its border may cut objects. `inside`: the
box is uniform among the places where all of it is inside."""
POSITIONS: tuple[str, ...] = get_args(Position)

Order: TypeAlias = Literal["drawn", "large_first"]
"""`drawn`: later ones over earlier ones. `large_first`: by falling area, so small ones on top."""
ORDERS: tuple[str, ...] = get_args(Order)


@dataclass(frozen=True, slots=True, eq=False)
class PasteParameters:
    """Hold everything random about one paste, for n instances of the pool in order.

    Attributes:
        positions: Int64 `(n,)`, positions in the pool.
        scales: Float64 `(n,)`, square root of the box's share of the image.
        aspect_factors: Float64 `(n,)`, factor on width / height.
        flips: Bool `(n,)`, mirror horizontally.
        centres_xy: Float64 `(n, 2)` in [0, 1): place of the box in x and y, of its centre in the
            image or of the box in its free room, as `position` says.
        angles_deg: Float64 `(n,)`, turn counter-clockwise; None where nothing is turned.
        colours: Float64 `(n, 4)`, as of `ColourJitter.sample`; None where colours stay.
        donor: What is copied from another annotated image, if anything.
    """

    positions: IntArray
    scales: FloatArray
    aspect_factors: FloatArray
    flips: BoolArray
    centres_xy: FloatArray
    angles_deg: FloatArray | None = None
    colours: FloatArray | None = None
    donor: DonorParameters | None = None


class CopyPaste:
    """Paste instances into annotated images.

    `PRESETS["xpaste"].build(pool, statistics)` gives the recipe that X-Paste and BSGAL share,
    `PRESETS["simple_copy_paste"].build(donors=donors)` that of Simple Copy-Paste.

    Args:
        pool: Where instances come from; its category ids must be those of the targets
            (`pool.match(categories)`). None if `source` has no pool.
        sampler: Chooses how many instances and which. None if `source` has no pool.
        scale: Chooses their size. None if `source` has no pool.
        source: Where instances come from: `pool`, `self`, `both` or `none`.
        donors: Images to copy from, for `self` and `both`.
        aspect_range: The width / height of the box is multiplied by a factor drawn uniformly
            from this range; the area stays.
        flip_prob: Probability of a horizontal mirror image.
        rotation_range_deg: Range of the turn of pool instances, counter-clockwise. The area of
            the box is that of the turned one.
        colour_jitter: How the colours of pool instances vary; None leaves them.
        position: Where the boxes of pool instances may be: `uniform` or `inside`.
        min_side_px: A pool instance with a shorter side is left out.
        order: Which pool instances lie on top: `drawn` or `large_first`.
        donor_scale_range: Range of the factor on a donor's size: times this it fits the target.
        max_donor_instances: Most instances copied from one donor.
        visibility: Decides what stays once others lie over it.
        blend_mode: How pixels are combined: one of `BLEND_MODES`.
        on_corrupt: Whether an unreadable instance or donor raises, or is left out and listed in
            the result's `removed` with the reason `corrupt`.

    Raises:
        ValueError: An argument is out of range, `source` and what is given for it disagree, or
            `scale` cannot serve a category of the pool.
    """

    def __init__(
        self,
        pool: InstancePool | None,
        sampler: Sampler | None = None,
        scale: ScaleRule | None = None,
        *,
        source: Source = "pool",
        donors: Donors | None = None,
        aspect_range: tuple[float, float] = (0.8, 1.2),
        flip_prob: float = 0.5,
        rotation_range_deg: tuple[float, float] = (0.0, 0.0),
        colour_jitter: ColourJitter | None = None,
        position: Position = "uniform",
        min_side_px: int = 5,
        order: Order = "drawn",
        donor_scale_range: tuple[float, float] = (0.1, 2.0),
        max_donor_instances: int = 100,
        visibility: VisibilityRule | None = None,
        blend_mode: BlendMode = "hard",
        on_corrupt: Literal["raise", "skip"] = "raise",
    ) -> None:
        check_source(source, {"pool": pool, "sampler": sampler, "scale": scale}, {"donors": donors})
        for name, (low, high) in (
            ("aspect_range", aspect_range), ("donor_scale_range", donor_scale_range),
        ):  # fmt: skip
            if not 0 < low <= high:
                raise ValueError(f"`{name}` must be 0 < low <= high, got {(low, high)}")
        if not -180 <= rotation_range_deg[0] <= rotation_range_deg[1] <= 180:
            raise ValueError(
                f"`rotation_range_deg` must be -180 <= low <= high <= 180, got {rotation_range_deg}"
            )
        if not 0 <= flip_prob <= 1:
            raise ValueError(f"`flip_prob` must be in [0, 1], got {flip_prob}")
        if min_side_px < 1 or max_donor_instances < 1:
            raise ValueError(
                "`min_side_px` and `max_donor_instances` must be positive, got "
                f"{min_side_px} and {max_donor_instances}"
            )
        for name, value, allowed in (
            ("position", position, POSITIONS),
            ("order", order, ORDERS),
            ("blend_mode", blend_mode, BLEND_MODES),
            ("on_corrupt", on_corrupt, ("raise", "skip")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}")
        self.source: Source = source
        self.pool = InstancePool.from_arrays([], []) if pool is None else pool
        if scale is not None:
            scale.check(self.pool.category_ids)
        self.sampler = sampler
        self.scale = scale
        self.donors = donors
        self.aspect_range = aspect_range
        self.flip_prob = flip_prob
        self.rotation_range_deg = rotation_range_deg
        self.colour_jitter = colour_jitter
        self.position: Position = position
        self.min_side_px = min_side_px
        self.order: Order = order
        self.donor_scale_range = donor_scale_range
        self.max_donor_instances = max_donor_instances
        self.visibility: VisibilityRule = visibility or VisibleShare()
        self.blend_mode: BlendMode = blend_mode
        self.on_corrupt = on_corrupt

    def __call__(self, target: AnnotatedImage, rng: np.random.Generator) -> PasteResult:
        """Paste into one image: `sample_parameters`, then `apply`.

        Raises:
            CorruptInstanceError: A drawn instance cannot be read and `on_corrupt` is `raise`.
            AnnotationError: Likewise for a donor.
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
        if self.sampler is None or self.scale is None:
            positions, scales = np.zeros(0, dtype=np.int64), np.zeros(0)
        else:
            positions = self.sampler.sample(rng, target_category_ids)
            scales = self.scale.sample(self.pool.category_ids_of(positions), image_hw, rng)
        n = len(positions)
        aspect_factors = rng.uniform(*self.aspect_range, size=n)
        flips = rng.random(n) < self.flip_prob
        centres_xy = rng.random((n, 2))
        # What is optional has generators of its own: switching it on leaves all other draws as
        # they are.
        turning, colouring, donating = map(np.random.default_rng, rng.integers(2**63, size=3))
        return PasteParameters(
            positions=positions,
            scales=scales,
            aspect_factors=aspect_factors,
            flips=flips,
            centres_xy=centres_xy,
            angles_deg=(
                turning.uniform(*self.rotation_range_deg, size=n)
                if any(self.rotation_range_deg)
                else None
            ),
            colours=self.colour_jitter.sample(n, colouring) if self.colour_jitter else None,
            donor=self._sample_donor(target_category_ids, donating) if self.donors else None,
        )

    def apply(self, target: AnnotatedImage, parameters: PasteParameters) -> PasteResult:
        """Paste with given parameters; the same arguments give the same bytes.

        Raises:
            CorruptInstanceError: An instance cannot be read and `on_corrupt` is `raise`.
            AnnotationError: Likewise for a donor.
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
        if self.order == "large_first":
            cutouts.sort(key=lambda cutout: -cutout.full_area_px)
        copied, unread = self._copied(parameters.donor, target.image_hw)
        return apply_cutouts(
            target,
            [*copied, *cutouts],
            visibility=self.visibility,
            blend_mode=self.blend_mode,
            removed=[*unread, *removed],
        )

    def _sample_donor(
        self, target_category_ids: IntArray, rng: np.random.Generator
    ) -> DonorParameters:
        assert self.donors is not None
        return DonorParameters(
            index=self.donors.sample(rng, target_category_ids),
            scale=float(rng.uniform(*self.donor_scale_range)),
            flip=bool(rng.random() < self.flip_prob),
            offset_xy=(float(rng.random()), float(rng.random())),
            selection_seed=int(rng.integers(2**63)),
        )

    def _copied(
        self, parameters: DonorParameters | None, image_hw: tuple[int, int]
    ) -> tuple[list[Cutout], list[RemovedInstance]]:
        if parameters is None:
            return [], []
        assert self.donors is not None
        try:
            donor = self.donors.read(parameters.index)
        except (AnnotationError, FileNotFoundError):
            if self.on_corrupt == "raise":
                raise
            return [], [RemovedInstance("corrupt", -1, f"donor-{parameters.index}", -1, 0.0)]
        limit = self.max_donor_instances
        return donor_cutouts(donor, parameters, image_hw=image_hw, max_instances=limit), []

    def _cutout(
        self, position: int, i: int, parameters: PasteParameters, image_hw: tuple[int, int]
    ) -> Cutout | RemovalReason:
        try:
            instance = self.pool.read_weighted(position)
        except CorruptInstanceError:
            if self.on_corrupt == "raise":
                raise
            return "corrupt"
        angle_deg = 0.0 if parameters.angles_deg is None else float(parameters.angles_deg[i])
        width, height = target_size_wh(
            instance, float(parameters.scales[i]), float(parameters.aspect_factors[i]), image_hw
        )
        box_wh = width, height
        if angle_deg:
            (width, height), box_wh = size_before_turning(instance.rgba, box_wh, angle_deg)
        if min(width, height, *box_wh) < self.min_side_px:
            return "too_small"
        if box_wh[0] >= image_hw[1] or box_wh[1] >= image_hw[0]:
            return "too_large"
        rgba = reshape_weighted(
            instance.rgba,
            width,
            height,
            angle_deg=angle_deg,
            flip=bool(parameters.flips[i]),
        )
        if parameters.colours is not None:
            rgba = change_colours(rgba, parameters.colours[i])
        height, width = rgba.shape[:2]
        x, y = parameters.centres_xy[i].tolist()
        if self.position == "inside":
            if width > image_hw[1] or height > image_hw[0]:
                return "too_large"
            left, top = x * (image_hw[1] - width), y * (image_hw[0] - height)
        else:
            left, top = x * image_hw[1] - width / 2, y * image_hw[0] - height / 2
        cutout = place(
            rgba,
            # Applied after resizing: before, a soft rim would widen or eat the mask.
            instance.label_mask_threshold,
            left_px=round(left),
            top_px=round(top),
            image_hw=image_hw,
            category_id=instance.category_id,
            instance_id=instance.instance_id,
        )
        return "outside" if cutout is None else cutout


def check_source(source: str, for_pool: dict[str, object], for_donors: dict[str, object]) -> None:
    """Raise ValueError unless exactly what `source` needs is given, that is, not None."""
    if source not in SOURCES:
        raise ValueError(f"`source` must be one of {SOURCES}, got {source!r}")
    for given, sources in ((for_pool, ("pool", "both")), (for_donors, ("self", "both"))):
        for name, value in given.items():
            if source in sources and value is None:
                raise ValueError(f"`source` is {source!r}, which needs `{name}`")
            if source not in sources and value is not None:
                raise ValueError(
                    f"`source` is {source!r}, which takes no `{name}`; leave it out, or set "
                    f"`source` to {' or '.join(map(repr, sources))}"
                )


def sample_rng(seed: int, epoch: int, image_id: int) -> np.random.Generator:
    """Give the random generator of one sample, the same in any process.

    Args:
        seed: Of everything random, at least 0.
        epoch: Counts from 0.
        image_id: Of the image, or its index; at least 0.
    """
    return np.random.default_rng([seed, epoch, image_id])


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
