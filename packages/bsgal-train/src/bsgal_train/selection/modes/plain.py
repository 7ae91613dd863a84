"""`none` and `paste_all`: the two controls, which judge nothing."""

from __future__ import annotations

from bsgal_train.processes import group as processes
from bsgal_train.selection.step import Selected, SelectionStep
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["AlwaysPaste", "NeverPaste"]


class NeverPaste(SelectionStep):
    """Train on the images as they are annotated."""

    def _select(self, batch: TrainingBatch) -> Selected:
        return Selected(losses=batch.losses(batch.original), statistics={})


class AlwaysPaste(SelectionStep):
    """Train on everything that was pasted, good or bad."""

    def _select(self, batch: TrainingBatch) -> Selected:
        n_pasted = processes.total(sum(len(sample.pastes) for sample in batch.samples))
        return Selected(losses=batch.losses(batch.pasted), statistics={"n_pasted": n_pasted})
