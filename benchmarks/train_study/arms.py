"""Arms of the study: each is a row, overrides of the recipe `builtin_continue` and a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Variant = Literal["planted", "clean", "u2netp", "clip"]
"""The spoilt pool; without what is planted; without what a salient-object model or CLIP doubts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One arm; those that are equal share their runs.

    Attributes:
        settings: overrides; `{planted}` stands for the pool's `planted.json`.
        pool: what it pastes of.
        share_of: arm whose accepted share it keeps, with the same seed.
        steers: whether what it judges bad is drawn no more, so that its verdicts are counted by
            instance of the pool and not by draw.
        screen: looks at every instance before the first step, with the start's detector.
    """

    settings: tuple[str, ...]
    pool: Variant = "planted"
    share_of: str = ""
    steers: bool = False
    screen: int = 0


def _all_of(pool: Variant) -> Arm:
    return Arm(settings=("selection.mode=paste_all",), pool=pool)


def _instance(*settings: str) -> Arm:
    return Arm(settings=("selection.mode=instance", *settings))


def _by(source: str = "", *, screen: int = 0) -> Arm:
    """Judge by one source of evidence, or by all; add looks up, and draw by what they say."""
    sources = (f'selection.sources=["{source}"]',) if source else ()
    settings = ("selection.mode=instance", "selection.publish_every=5", *sources)
    return Arm(settings=settings, steers=True, screen=screen)


def _once(source: str) -> Arm:
    """Judge by one look at one source, and draw all instances alike."""
    return _instance(
        f'selection.sources=["{source}"]',
        *("selection.min_looks=1", "selection.max_looks=1", "selection.steer=false"),
    )


_LOOKS = 4
_CLASS_ROW = ("selection.reference=own_class", "selection.policy=like_real")
_FIXED = ("selection.policy=fixed", "selection.threshold=0")
_IN_BATCH = ("selection.reference=in_batch", *_FIXED)
_HYBRID = ("selection.reference=hybrid", *_FIXED)
_STEP = "selection.form=step"
_ROWWISE = "selection.rowwise=true"

ARMS: dict[str, Arm] = {
    "none": Arm(settings=("selection.mode=none",)),
    "paste_all": _all_of("planted"),
    "paste_clean": _all_of("clean"),
    "exact_reject": Arm(settings=("selection.mode=listed", "selection.rejected_ids={planted}")),
    "exact_replace": _all_of("clean"),
    "paste_filtered": _all_of("u2netp"),
    "clip_filtered": _all_of("clip"),
    "evidence_reject": _instance("selection.steer=false"),
    "evidence_steer": _by(),
    "screened": _by(screen=_LOOKS),
    "own_loss": _by("cls_loss"),
    "own_loss_once": _once("cls_loss"),
    "own_loss_screened": _by("cls_loss", screen=_LOOKS),
    "prototype": _by("real_prototype"),
    "prototype_once": _once("real_prototype"),
    "prototype_screened": _by("real_prototype", screen=_LOOKS),
    "mask_loss": _by("mask_loss"),
    "mask_loss_once": _once("mask_loss"),
    "mask_loss_screened": _by("mask_loss", screen=_LOOKS),
    "paper": Arm(settings=("selection.mode=paper",)),
    "batch": Arm(settings=("selection.mode=batch",)),
    "class_row": _instance(*_CLASS_ROW),
    "class_row_strict": _instance(*_CLASS_ROW, "selection.real_kept_share=0.95"),
    "in_batch": _instance(*_IN_BATCH),
    "in_batch_rowwise": _instance(*_IN_BATCH, _ROWWISE),
    "in_batch_step": _instance(*_IN_BATCH, _STEP),
    "in_batch_step_rowwise": _instance(*_IN_BATCH, _STEP, _ROWWISE),
    "hybrid": _instance(*_HYBRID),
    "hybrid_rowwise": _instance(*_HYBRID, _ROWWISE),
    "hybrid_step": _instance(*_HYBRID, _STEP),
    "hybrid_step_rowwise": _instance(*_HYBRID, _STEP, _ROWWISE),
    "paste_random": Arm(settings=("selection.mode=paste_random",), share_of="class_row"),
}

BASE = "paste_all"
"""What an arm's cost and gain are measured against."""

CEILING = "paste_clean"
"""What perfect judgement of the planted defects would be worth."""

SINGLE_SOURCES = (
    *("class_row", "own_loss", "prototype", "mask_loss"),
    *("own_loss_screened", "prototype_screened", "mask_loss_screened"),
)
"""Arms that judge by one source of evidence: what combined evidence has to be better than."""

AGAINST = ("none", BASE, "paste_random", *SINGLE_SOURCES)
"""What every arm is compared with, seed by seed."""

WALL = "@wall"
"""Ends the name of an arm that has the time of `paste_all`, not its steps."""

WALL_ARMS = ("paper", "batch", "class_row", "evidence_steer")
"""Arms that have such a repetition: those that do not already lose with as many steps."""


def in_order(arms: list[str]) -> list[str]:
    """Return arms such that one whose share another keeps comes before that.

    Raises:
        SystemExit: if it is missing.
    """
    for arm in arms:
        if (needed := ARMS[arm].share_of) and needed not in arms:
            raise SystemExit(f"{arm} keeps the share that {needed} keeps: name both in --arms")
    return sorted(arms, key=lambda arm: bool(ARMS[arm].share_of))
