"""From what is known about instances to how often each is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsgal_paste import InstancePool

__all__ = ["DrawPolicy", "weights_from_evidence"]

_VERDICTS = ("accept", "reject", "uncertain")


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawPolicy:
    """Turn verdicts into draw weights.

    An accepted instance has weight 1. An uncertain one has `uncertain_weight` until it has been
    looked at `min_looks` times, then 1. A rejected one has `revisit_share` / looks, so that it
    comes back ever more rarely and a mistake can be revised; but the rejected ones of a category
    get together at most `revisit_share` of the weight of its others, however many they are. A
    category of rejected ones only is thus not drawn.

    Attributes:
        min_looks: at least 0.
        uncertain_weight: above 0, or they would never be judged; above 1 they are judged sooner.
        revisit_share: from 0 (rejected instances are not drawn again) to 1.
    """

    min_looks: int = 2
    uncertain_weight: float = 2.0
    revisit_share: float = 0.05

    def __post_init__(self) -> None:
        if self.min_looks < 0:
            raise ValueError(f"`min_looks` must be at least 0, got {self.min_looks}")
        if not 0 < self.uncertain_weight < np.inf:
            raise ValueError(
                f"`uncertain_weight` must be finite and positive, got {self.uncertain_weight}"
            )
        if not 0 <= self.revisit_share <= 1:
            raise ValueError(f"`revisit_share` must be in [0, 1], got {self.revisit_share}")

    def weights(
        self,
        looks: npt.NDArray[np.integer],
        verdicts: npt.NDArray[np.str_],
        category_ids: npt.NDArray[np.integer],
    ) -> npt.NDArray[np.float32]:
        """Give one weight per instance.

        Args:
            looks: How many looks each verdict is made of, `(n,)`, at least 0.
            verdicts: `accept`, `reject` or `uncertain`, `(n,)`.
            category_ids: `(n,)`, in any order.

        Returns:
            `(n,)`, finite, at least 0.

        Raises:
            ValueError: The shapes differ, a number of looks is negative, a rejected instance has
                no look, or a verdict is another word.
        """
        if not looks.shape == verdicts.shape == category_ids.shape == (len(looks),):
            raise ValueError(
                "`looks`, `verdicts` and `category_ids` must be of one shape (n,), got "
                f"{looks.shape}, {verdicts.shape}, {category_ids.shape}"
            )
        is_accepted, is_rejected, is_uncertain = (verdicts == verdict for verdict in _VERDICTS)
        unknown = ~(is_accepted | is_rejected | is_uncertain)
        if unknown.any():
            raise ValueError(
                f"a verdict must be one of {_VERDICTS}, got {str(verdicts[unknown][0])!r}"
            )
        if (looks < is_rejected).any():
            raise ValueError("`looks` must be at least 0, and at least 1 for what is rejected")
        weights = np.ones(len(looks))
        weights[is_uncertain & (looks < self.min_looks)] = self.uncertain_weight
        weights[is_rejected] = self.revisit_share / looks[is_rejected]
        category = np.unique(category_ids, return_inverse=True)[1]
        rejected = np.bincount(category, weights * is_rejected)
        allowed = self.revisit_share * np.bincount(category, weights * ~is_rejected)
        too_much = rejected > allowed
        factors = np.ones(len(rejected))
        factors[too_much] = allowed[too_much] / rejected[too_much]
        weights[is_rejected] *= factors[category[is_rejected]]
        return weights.astype(np.float32)


def weights_from_evidence(
    pool: InstancePool,
    ids: Sequence[str],
    looks: npt.NDArray[np.integer],
    verdicts: npt.NDArray[np.str_],
    policy: DrawPolicy,
) -> npt.NDArray[np.float32]:
    """Give the draw weights of a pool's instances by evidence that names them by id.

    Instances without evidence are uncertain; evidence about others is not used.

    Args:
        pool: As it is drawn from.
        ids: Of the instances that something is known about, n different ones.
        looks: `(n,)`.
        verdicts: `(n,)`.
        policy: Chooses the weights.

    Returns:
        `(len(pool),)`, in the order of positions.

    Raises:
        ValueError: An id repeats, none of them is in the pool, or as `DrawPolicy.weights`.
    """
    row_of = {instance_id: row for row, instance_id in enumerate(ids)}
    if not len(row_of) == len(ids) == len(looks) == len(verdicts):
        raise ValueError(
            f"`ids` must name each instance once, with looks and verdict, got {len(ids)} ids of "
            f"{len(row_of)} instances, {len(looks)} looks and {len(verdicts)} verdicts"
        )
    positions = np.arange(len(pool))
    rows = np.array([row_of.get(pool.instance_id(p), -1) for p in positions.tolist()], dtype=int)
    known = rows >= 0
    if len(ids) and not known.any():
        raise ValueError(
            f"the evidence is about {len(ids)} instances, first {ids[0]!r}, none of which is in "
            f"the pool, first {pool.instance_id(0)!r}; is it of another pool?"
        )
    all_looks = np.zeros(len(pool), dtype=np.int64)
    all_looks[known] = looks[rows[known]]
    all_verdicts = np.full(len(pool), "uncertain")
    all_verdicts[known] = verdicts[rows[known]]
    return policy.weights(all_looks, all_verdicts, pool.category_ids_of(positions))
