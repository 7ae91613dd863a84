"""What every selection mode needs, known without running it: one row each in `MODES`.

A mode is a row here and a class in `selection/modes/`. A source of scores for the modes that judge
the rows of the training pass is a `ScoreSpec` here and a class in `selection/scoring/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = [
    "MODES",
    "POLICY_SETTINGS",
    "EvidenceSource",
    "Granularity",
    "LossKind",
    "ModeSpec",
    "PolicyName",
    "Reference",
    "ScoreSpec",
]

Granularity = Literal["batch", "image", "instance"]
LossKind = Literal["cls", "box", "mask"]
PolicyName = Literal["fixed", "quantile", "schedule", "like_real", "level"]
Reference = Literal["in_batch", "class_matched", "hybrid", "own_class", "evidence"]
EvidenceSource = Literal[
    "prototype", "real_prototype", "cls_loss", "box_loss", "mask_loss", "outline"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSpec:
    """How scores are made, and what they are held against.

    Attributes:
        settings: fields of the recipe's selection that are read, those of the policy apart.
        losses: losses of the region heads that count where `losses` is not set.
        decay: weight of the old gradient cache where `decay` is not set.
        cosine_threshold: contribution that is needed of a cosine where `threshold` is not set; None
            where no score is a cosine. Scores in loss units need 0.
        policies: those there are, the first is taken where neither policy nor threshold is set;
            none where nothing is judged.
        caches: whose gradients are kept, in memory that a run must have.
        class_matched: real images of the pasted classes are compared with, every `refresh_every`
            steps where that is among the settings, else in each step.
        scoring: module and class in `selection/scoring/`, where rows are scored.
    """

    settings: tuple[str, ...] = ()
    losses: tuple[LossKind, ...] = ("cls", "box", "mask")
    decay: float = 0.9
    cosine_threshold: float | None = -0.05
    policies: tuple[PolicyName, ...] = ()
    caches: Literal["class_rows", "heads", "detector"] | None = None
    class_matched: bool = False
    scoring: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeSpec:
    """What a selection mode is.

    Attributes:
        step: module and class in `selection/modes/` that takes its steps.
        pastes: generated instances are needed.
        granularity: what shares a verdict; None where nothing is judged, or a setting says it.
        settings: fields of the recipe's selection that are read whatever scores are made of.
        scores: how they are made, by `selection.reference`, the first that fits is the default; of
            a mode without that choice by None.
        scores_the_training_pass: verdicts come from the pass that is trained on. The backbone is at
            rest in it: which blocks a step skips must not decide what an instance is worth.
    """

    step: str
    pastes: bool = True
    granularity: Granularity | None = None
    settings: tuple[str, ...] = ()
    scores: Mapping[Reference | None, ScoreSpec] = field(
        default_factory=lambda: {None: ScoreSpec()}
    )
    scores_the_training_pass: bool = False

    def settings_of(self, reference: Reference | None, policy: PolicyName) -> set[str]:
        """Return the fields of the recipe's selection that are read.

        Args:
            reference: a key of `scores`.
            policy: one of its policies; anything where it has none.
        """
        scores = self.scores[reference]
        found = {"mode", *self.settings, *scores.settings}
        if reference is not None:
            found.add("reference")
        if scores.policies:
            by_group = self.granularity == "instance"
            found |= {"policy"} | {
                name for name in POLICY_SETTINGS[policy] if by_group or "group" not in name
            }
        return found

    def choices(self) -> Iterator[tuple[Reference | None, PolicyName]]:
        """Yield every reference with each of its policies."""
        for reference, scores in self.scores.items():
            for policy in scores.policies or ("fixed",):
                yield reference, policy


_FIXED = ("threshold", "threshold_by_group")
_QUANTILE = (*_FIXED, "window", "per_group", "kept_share", "kept_share_by_group")

POLICY_SETTINGS: Mapping[PolicyName, tuple[str, ...]] = {
    "fixed": _FIXED,
    "quantile": _QUANTILE,
    "schedule": (*_QUANTILE, "kept_share_end", "kept_share_end_by_group"),
    "like_real": ("real_kept_share", "window", "per_group"),
    "level": ("alpha",),
}
"""Fields of the recipe's selection that each policy reads, those by group of single instances."""

_JUDGED: tuple[PolicyName, ...] = ("fixed", "quantile", "schedule")
_GRADIENT = ("form", "losses", "decay")
_OF_HEADS = (*_GRADIENT, "layers", "rowwise", "cache_dtype")

_IN_BATCH = ScoreSpec(
    settings=_OF_HEADS, policies=_JUDGED, caches="heads", scoring="heads:HeadScoring"
)
_REFRESHED = replace(_IN_BATCH, settings=(*_OF_HEADS, "refresh_every"), class_matched=True)
_BY_REFERENCE: Mapping[Reference | None, ScoreSpec] = {
    "in_batch": _IN_BATCH,
    "class_matched": _REFRESHED,
    "hybrid": _REFRESHED,
}
_OWN_CLASS = ScoreSpec(
    settings=("decay", "images_per_class"),
    losses=("cls",),
    policies=("like_real", *_JUDGED),
    caches="class_rows",
    scoring="class_rows:ClassRowScoring",
)

_EVIDENCE = ScoreSpec(
    settings=(
        *("sources", "min_looks", "max_looks", "images_per_class"),
        *("evidence", "steer", "publish_every"),
    ),
    losses=(),
    cosine_threshold=None,
    policies=("level",),
    scoring="evidence:EvidenceScoring",
)

MODES: Mapping[str, ModeSpec] = {
    "none": ModeSpec(step="plain:NeverPaste", pastes=False),
    "paste_all": ModeSpec(step="plain:AlwaysPaste"),
    "paste_random": ModeSpec(step="random:RandomSelection", settings=("granularity", "kept_share")),
    "listed": ModeSpec(
        step="listed:ListedSelection", granularity="instance", settings=("rejected_ids",)
    ),
    "paper": ModeSpec(
        step="paper:PaperSelection",
        granularity="batch",
        settings=("nothing_to_judge", "reference_classes"),
        scores={
            None: ScoreSpec(
                settings=_GRADIENT,
                losses=("cls",),
                # Released with the paper.
                decay=0.1,
                policies=_JUDGED,
                # Of everything, in fp32, as released.
                caches="detector",
                class_matched=True,
            )
        },
    ),
    "batch": ModeSpec(
        step="batch:BatchSelection",
        granularity="batch",
        scores={None: replace(_REFRESHED, losses=("cls",), decay=0.1, scoring="")},
        scores_the_training_pass=True,
    ),
    "image": ModeSpec(
        step="rows:RowSelection",
        granularity="image",
        scores=_BY_REFERENCE,
        scores_the_training_pass=True,
    ),
    "instance": ModeSpec(
        step="rows:RowSelection",
        granularity="instance",
        scores={"evidence": _EVIDENCE, "own_class": _OWN_CLASS, **_BY_REFERENCE},
        scores_the_training_pass=True,
    ),
    "oracle": ModeSpec(
        step="oracle:OracleSelection",
        granularity="instance",
        settings=("oracle_step",),
        scores={
            None: ScoreSpec(
                settings=("losses",),
                cosine_threshold=None,
                policies=_JUDGED,
                class_matched=True,
            )
        },
        scores_the_training_pass=True,
    ),
}
"""Every `selection.mode`, by name."""
