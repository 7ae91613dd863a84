"""Arms of the study, as overrides of the recipe `builtin_continue`."""

from __future__ import annotations

_INSTANCE = ["selection.mode=instance"]
_OWN_CLASS = [*_INSTANCE, "selection.reference=own_class", "selection.policy=like_real"]
_FIXED = ["selection.policy=fixed", "selection.threshold=0"]
_IN_BATCH = [*_INSTANCE, "selection.reference=in_batch", *_FIXED]
_HYBRID = [*_INSTANCE, "selection.reference=hybrid", *_FIXED]
_STEP = ["selection.form=step"]
_ROWWISE = ["selection.rowwise=true"]

ARMS: dict[str, list[str]] = {
    "none": ["selection.mode=none"],
    "paste_all": ["selection.mode=paste_all"],
    "paste_clean": ["selection.mode=paste_all"],
    "paste_filtered": ["selection.mode=paste_all"],
    "paper": ["selection.mode=paper"],
    "batch": ["selection.mode=batch"],
    "instance": _OWN_CLASS,
    "instance_strict": [*_OWN_CLASS, "selection.real_kept_share=0.95"],
    "in_batch": _IN_BATCH,
    "in_batch_rowwise": [*_IN_BATCH, *_ROWWISE],
    "in_batch_step": [*_IN_BATCH, *_STEP],
    "in_batch_step_rowwise": [*_IN_BATCH, *_STEP, *_ROWWISE],
    "hybrid": _HYBRID,
    "hybrid_rowwise": [*_HYBRID, *_ROWWISE],
    "hybrid_step": [*_HYBRID, *_STEP],
    "hybrid_step_rowwise": [*_HYBRID, *_STEP, *_ROWWISE],
    "paste_random": ["selection.mode=paste_random"],
}
"""Overrides by arm, apart from pool and seed."""

BASE = "paste_all"
"""What an arm's cost and gain are measured against."""

WALL = "@wall"
"""Ends the name of an arm that has the time of `paste_all`, not its steps."""

WALL_ARMS = ("paper", "batch", "instance")
"""Arms that have such a repetition: those that do not already lose with as many steps."""
