"""`oracle`: the exact effect of every pasted object on the loss on real data, for studies.

For each pasted object the run's own step, clipping included, is taken with and without its rows (or
on them alone), the loss of class-matched real images is compared, and everything is put back bit
for bit (`bsgal_score.loss_difference`). That is two training steps and two more forward passes per
object. Then rejected objects give no loss, as in `instance`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bsgal_score import loss_difference
from bsgal_train.processes import group as processes
from bsgal_train.selection.reject import losses_without
from bsgal_train.selection.scoring.passes import reference_loss
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.step import Judged, JudgingStep
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["OracleSelection"]


class OracleSelection(JudgingStep):
    """The procedure of the module's docstring.

    Args:
        setup: of the run.

    Raises:
        ValueError: there are several processes.
    """

    def __init__(self, setup: Setup) -> None:
        if processes.n_processes() > 1:
            raise ValueError("selection.mode=oracle runs in one process only")
        super().__init__(setup)
        self._reference = setup.reference
        self._update = setup.update

    def _judged_losses(self, batch: TrainingBatch) -> Judged:
        with batch.scoring():
            verdicts = self._judge.judge(batch.units, self._contributions(batch))
        losses, rows = batch.recorded_losses(batch.pasted)
        rejected = batch.units.rejected([verdict.trains for verdict in verdicts])
        return losses_without(losses, rows, batch.pasted, rejected), verdicts

    def _contributions(self, batch: TrainingBatch) -> list[float | None]:
        kinds = self._config.effective_losses
        real = self._reference.for_step(batch.samples, batch.seed)

        def real_loss() -> Tensor:
            loss = reference_loss(
                batch.detector, real, self._precision, batch.seed, batch.keys, kinds=kinds
            )
            return torch.zeros(()) if loss is None else loss

        n_units = len(batch.units)
        if not n_units or not float(real_loss().detach()):
            return [None] * n_units
        with torch.no_grad():
            _, rows = batch.recorded_losses(batch.pasted)
        counting = [one for one in rows if one.kind in kinds]
        return [
            self._difference(batch, unit, real_loss)
            if any(bool((batch.units.of_rows(one.rows) == unit).any()) for one in counting)
            else None
            for unit in range(n_units)
        ]

    def _difference(
        self, batch: TrainingBatch, unit: int, real_loss: Callable[[], Tensor]
    ) -> float | None:
        def alone() -> Tensor:
            _, rows = batch.recorded_losses(batch.pasted)
            own = [one.total(batch.units.of_rows(one.rows) == unit) for one in rows]
            return torch.stack(own).sum()

        def rest() -> Tensor:
            losses, rows = batch.recorded_losses(batch.pasted)
            rejected = batch.units.rejected([other != unit for other in range(len(batch.units))])
            kept = losses_without(losses, rows, batch.pasted, rejected)
            return torch.stack(list(kept.values())).sum()

        def clip() -> None:
            self._update.clip()

        return loss_difference(
            batch.detector,
            self._update.optimizer,
            reference_loss=real_loss,
            candidate_loss=alone,
            batch_loss=rest if self._config.oracle_step == "in_batch" else None,
            before_step=clip,
        )
