"""How many more images a number of *kept* instances takes, round by round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ._funnel import funnel, pool_outcomes
from ._image_set import ImageSet
from ._meta import META_NAME, setting
from ._plan import GenerationPlan
from ._rounds import read_rounds
from .errors import ConfigChangedError, ImageSetError


@dataclass(frozen=True, slots=True)
class Round:
    """What to draw next.

    Attributes:
        plan: The plan with as many images per category as the set is to have.
        n_new: How many of its samples are still to be drawn; 0 ends the rounds.
        capped: Ids of the categories that have too few kept instances and no images left under the
            cap.
    """

    plan: GenerationPlan
    n_new: int
    capped: tuple[int, ...]


def next_round(
    plan: GenerationPlan,
    out_dir: str | Path,
    pool_dir: str | Path,
    *,
    kept_target: int,
    cap: int,
    max_redraws: int,
) -> Round:
    """Plan the next round of a set, from what an instance pool kept of the rounds before.

    The first round has the plan's own number of images per category. Every further one adds, where
    instances are missing, as many images as they take at the share that was kept so far, or doubles
    the images where none was kept. A round that was stopped is ended first.

    Args:
        plan: What to draw; its `images_per_category` is the size of the first round.
        out_dir: The image set's folder, which need not exist.
        pool_dir: The instance pool that is cut from it, which need not exist before the first cut.
        kept_target: Instances wanted in the pool, per category.
        cap: Most images per category.
        max_redraws: The run's number of redraws.

    Returns:
        The round.

    Raises:
        ValueError: The target or the cap is below 1.
        ConfigChangedError: The set was planned for other categories.
        ImageSetError: Images of the set have not been cut yet, or set or pool are damaged.
    """
    for name, value in (("kept_target", kept_target), ("cap", cap)):
        if type(value) is not int or value < 1:
            raise ValueError(f"`{name}` must be an int of at least 1, got {value!r}")
    if not (Path(out_dir) / META_NAME).exists():
        counts = {c.category_id: min(plan.count_of(c.category_id), cap) for c in plan.categories}
        first = replace(plan, images_per_category=counts)
        return Round(first, len(first), ())
    image_set = ImageSet.open(out_dir)
    if planned := set(setting(image_set.meta, "config.plan.categories", image_set.root)) ^ {
        str(category.category_id) for category in plan.categories
    }:
        raise ConfigChangedError(
            f"{out_dir} was planned for other categories: {min(planned)} is in one plan only; give "
            "the same category file, or use another folder for a new set"
        )
    last = replace(plan, images_per_category=read_rounds(image_set.root, image_set.meta)[-1])
    settled = image_set.settled(max_redraws)
    if n_unfinished := sum(sample.sample_id not in settled for sample in last):
        return Round(last, n_unfinished, ())
    _check_all_cut(image_set, Path(pool_dir))
    counts = {}
    capped = []
    kept = {entry.category_id: entry for entry in funnel(image_set, pool_dir)}
    for category in last.categories:
        category_id = category.category_id
        n_before = last.count_of(category_id)
        entry = kept.get(category_id)
        n_kept = (entry.n_kept or 0) if entry else 0
        needed = n_before
        if n_kept < kept_target:
            needed = -(-kept_target * n_before // n_kept) if n_kept else max(1, 2 * n_before)
        counts[category_id] = max(n_before, min(cap, needed))
        if n_kept < kept_target and counts[category_id] == n_before:
            capped.append(category_id)
    grown = replace(plan, images_per_category=counts)
    return Round(grown, len(grown) - len(last), tuple(capped))


def _check_all_cut(image_set: ImageSet, pool_dir: Path) -> None:
    cut = pool_outcomes(pool_dir) if (pool_dir / META_NAME).exists() else {}
    images = [row.sample_id for row in image_set if row.status == "ok"]
    if n_left := sum(sample_id not in cut for sample_id in images):
        raise ImageSetError(
            f"{n_left} of the {len(images)} images of {image_set.root} are not in the pool "
            f"{pool_dir} yet, so what they give is unknown; cut them first, for example with "
            f"`bsgal-mask run {image_set.root} --out {pool_dir}`"
        )
