"""`paste_random`: accept by lot, the control for every mode that judges.

Rejected units are treated as the judging modes treat them, so that at the same accepted share and
granularity the two differ in the choice alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from bsgal_train.data import TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import recorded
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.judge import Judge, decision_rows
from bsgal_train.selection.reject import losses_without
from bsgal_train.selection.step import Selected

__all__ = ["RandomSelection"]

_LOT = 77
"""Keeps the lots apart from other draws of the same seed."""


class RandomSelection:
    """Accept each unit with probability `selection.kept_share`.

    Args:
        recipe: share, granularity and precision.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._config = recipe.selection
        self._precision = recipe.detector.precision
        self._judge = Judge(recipe.selection, recipe.schedule.n_judgements)

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Draw lots and return the losses of what was accepted."""
        granularity = self._config.granularity
        n_units = [len(sample.pastes) if granularity == "instance" else 1 for sample in samples]
        groups = [tuple(paste.frequency for paste in sample.pastes) for sample in samples]
        accepts = [
            self._draw(seed, -1 if granularity == "batch" else sample.position, n)
            for sample, n in zip(samples, n_units, strict=True)
        ]
        if granularity == "batch":
            all_groups = tuple(group for one in groups for group in one)
            judgements = self._judge.accept_by(accepts[0][:1], [all_groups], joint=True)
            per_image = [accepts[0] * len(one) for one in groups]
        elif granularity == "image":
            judgements = self._judge.accept_by([one[0] for one in accepts], groups)
            per_image = [one * len(own) for one, own in zip(accepts, groups, strict=True)]
        else:
            judgements = self._judge.accept_by(
                [accept for one in accepts for accept in one],
                [(group,) for one in groups for group in one],
            )
            per_image = accepts
        keys = [sample.position for sample in samples]
        inputs = [
            sample.pasted if granularity == "instance" or any(one) else sample.original
            for sample, one in zip(samples, per_image, strict=True)
        ]
        with recorded() as rows:
            losses = training_losses(detector, inputs, self._precision, seed, keys)
        if granularity == "instance":
            rejected = [{i for i, accept in enumerate(one) if not accept} for one in per_image]
            losses = losses_without(losses, rows, inputs, rejected)
        self._judge.end_step()
        return Selected(
            losses=losses,
            decisions=decision_rows(step, samples, granularity, judgements),
            statistics={
                "n_pasted": processes.total(sum(accept for one in per_image for accept in one)),
                **self._judge.statistics(judgements),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"judge": self._judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._judge.load_state_dict(state["judge"])

    def _draw(self, seed: int, position: int, n: int) -> list[bool]:
        # A position is that of a sample in the run, -1 for the batch: the same in every process.
        rng = np.random.default_rng([seed, position + 1, _LOT])
        return [bool(value) for value in rng.random(n) < self._config.kept_share]
