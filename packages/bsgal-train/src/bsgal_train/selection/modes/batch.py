"""`batch`: the verdict of `paper` for less: heads only, the accepted graph is trained on.

One forward pass on the pasted images. The classification loss of the foreground proposals matched
to a pasted object gives a gradient in the region heads (one backward pass through them), which is
compared with a cache of real-data gradients of the same parameters; that cache is refreshed from
class-matched images every `selection.refresh_every` steps, without a graph below the heads. If the
batch is accepted, the graph that is there is trained on; if not, the same crops without pastes are
run.

Several processes share the cache and one verdict: gradients are averaged before they are compared.
"""

from __future__ import annotations

from bsgal_train.selection.scoring.gradient_score import contribution
from bsgal_train.selection.scoring.passes import gradients, pasted_loss
from bsgal_train.selection.scoring.real_gradient import HeadCache
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.step import Judged, JudgingStep
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["BatchSelection"]


class BatchSelection(JudgingStep):
    """The procedure of the module's docstring.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._optimizer = setup.optimizer
        self._real = HeadCache(setup)
        self._stateful["cache"] = self._real.cache

    def _judged_losses(self, batch: TrainingBatch) -> Judged:
        with batch.scoring():
            self._real.refresh(batch)
        losses, rows = batch.recorded_losses(batch.pasted)
        with batch.scoring():
            loss = pasted_loss(rows, self._config.effective_losses)
            score = None
            if loss is not None:
                candidate = gradients(loss, self._real.parameters, retain_graph=True)
                form = self._config.form
                score = contribution(self._real.cache, candidate, form, self._optimizer)
            verdicts = self._judge.judge(batch.units, [score])
        if not verdicts[0].trains:
            # Lets go of the pasted images' graph before the next one is built.
            del losses, rows, loss
            losses = batch.losses(batch.original)
        return losses, verdicts
