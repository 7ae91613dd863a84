"""`paste_random`: accept by lot, the control for every mode that judges.

Rejected units are treated as the judging modes treat them, so that at the same accepted share and
granularity the two differ in the choice alone.
"""

from __future__ import annotations

import numpy as np

from bsgal_train.selection.reject import losses_without
from bsgal_train.selection.step import Judged, JudgingStep
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["RandomSelection"]

_LOT = 77
"""Keeps the lots apart from other draws of the same seed."""


class RandomSelection(JudgingStep):
    """Accept each unit with probability `selection.kept_share`."""

    def _judged_losses(self, batch: TrainingBatch) -> Judged:
        accepts = self._lots(batch)
        verdicts = self._judge.note(batch.units, accepts)
        rejected = batch.units.rejected(accepts)
        if self._granularity == "instance":
            losses, rows = batch.recorded_losses(batch.pasted)
            return losses_without(losses, rows, batch.pasted, rejected), verdicts
        images = [
            sample.original if numbers else sample.pasted
            for sample, numbers in zip(batch.samples, rejected, strict=True)
        ]
        return batch.losses(images), verdicts

    def _lots(self, batch: TrainingBatch) -> list[bool]:
        if self._granularity == "batch":
            return self._draw(batch.seed, -1, 1)
        return [
            lot
            for sample in batch.samples
            for lot in self._draw(
                batch.seed,
                sample.position,
                len(sample.pastes) if self._granularity == "instance" else 1,
            )
        ]

    def _draw(self, seed: int, position: int, n: int) -> list[bool]:
        # A position is that of a sample in the run, -1 for the batch: the same in every process.
        rng = np.random.default_rng([seed, position + 1, _LOT])
        return [bool(value) for value in rng.random(n) < self._config.kept_share]
