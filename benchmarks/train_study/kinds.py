"""The kinds of defect that are planted, and which of them nothing may be developed with.

The split was written before any verdict was tuned, and is not to be changed by what comes out. Each
side has a wrong label, wrong masks and wrong content, three clear and three subtle, so that what
works on one has a right to work on the other; no kind is a milder form of one on the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from train_study import spoil
from train_study.spoil import Ingredients, Rgba

__all__ = ["KINDS", "PLANTED_SHARE", "SEEDS", "Kind", "Role", "kinds_of"]

Role = Literal["development", "held_back"]
Label = Literal["own", "random", "similar"]

PLANTED_SHARE = 0.45
"""Share of every category that is spoilt, in equal parts by the kinds of one role."""

SEEDS: dict[Role, int] = {"development": 0, "held_back": 1}
"""Of the instances and of what is done to them: no good instance is in both pools either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of defect.

    Attributes:
        role: whether verdicts may be developed with it, or it is for the final table only.
        is_subtle: whether somebody who leafs through a pool could miss it.
        shows_object: whether the object of the label can still be recognised.
        why: what makes such instances in practice.
        change: of the pixels; None where only the label is wrong.
        label: what the instance is called: what it is, any other category, or the one that looks
            most like it.
    """

    role: Role
    is_subtle: bool
    shows_object: bool
    why: str
    change: Callable[[Rgba, Ingredients], Rgba] | None = None
    label: Label = "own"


KINDS: dict[str, Kind] = {
    "wrong_category": Kind(
        role="development", is_subtle=False, shows_object=False, label="random",
        why="the generator drew something else than the prompt named",
    ),
    "broken_mask": Kind(
        role="development", is_subtle=False, shows_object=True, change=spoil.broken_mask,
        why="the segmenter split the object and joined its shadow or ground",
    ),
    "noise": Kind(
        role="development", is_subtle=False, shows_object=False, change=spoil.noise,
        why="the generator did not converge",
    ),
    "shifted_mask": Kind(
        role="development", is_subtle=True, shows_object=True, change=spoil.shifted_mask,
        why="mask and picture were resized or cropped differently",
    ),
    "holes": Kind(
        role="development", is_subtle=True, shows_object=True, change=spoil.holes,
        why="parts of the object have the background's colour",
    ),
    "heavy_blur": Kind(
        role="development", is_subtle=True, shows_object=True, change=spoil.heavy_blur,
        why="too few denoising steps, or a small picture enlarged",
    ),
    "background_slab": Kind(
        role="held_back", is_subtle=False, shows_object=True, change=spoil.background_slab,
        why="the segmenter took the object's whole surroundings",
    ),
    "foreign_content": Kind(
        role="held_back", is_subtle=False, shows_object=False, change=spoil.foreign_content,
        why="an outline was filled with another thing, as layout-guided generators do",
    ),
    "two_in_one": Kind(
        role="held_back", is_subtle=False, shows_object=True, change=spoil.two_in_one,
        why="the prompt gave two things that touch, and one mask",
    ),
    "similar_category": Kind(
        role="held_back", is_subtle=True, shows_object=False, label="similar",
        why="the generator confused what looks alike",
    ),
    "lost_end": Kind(
        role="held_back", is_subtle=True, shows_object=True, change=spoil.lost_end,
        why="the segmenter stopped at an inner edge",
    ),
    "occluded": Kind(
        role="held_back", is_subtle=True, shows_object=True, change=spoil.occluded,
        why="something stands in front of the object, and the mask does not know",
    ),
}  # fmt: skip
"""All kinds by name; a pool holds those of one role."""


def kinds_of(role: Role) -> tuple[str, ...]:
    """Return the names of the kinds of one role."""
    return tuple(name for name, kind in KINDS.items() if kind.role == role)
