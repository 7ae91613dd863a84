"""`instance` and `image`: score every unit of a step from the training forward pass itself.

One forward pass on the pasted images, in which layers of the region heads are recorded. A backward
pass that ends at these layers gives every unit's contribution (see `scoring`): a unit is a pasted
object, or all pasted objects of an image. Then one full backward pass:

- `instance`: on the same graph, with the rejected objects' proposals and anchors giving no loss at
  all, neither as object nor as background.
- `image`: on the same graph for the accepted images; the rejected images are run again without
  their pastes.

A unit's gradient is that of the rows matched to its objects, so one without any matched row is
`no_evidence` and trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bsgal_train.detector.agreement import agreed, keeping_to
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.selection.reject import losses_without
from bsgal_train.selection.scoring.protocol import Scoring
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.step import Judged, JudgingStep
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["RowSelection"]


class RowSelection(JudgingStep):
    """The procedure of the module's docstring.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._scoring: Scoring = setup.make("scoring", setup.config.scores.scoring)
        self._stateful["scoring"] = self._scoring

    @property
    def scoring(self) -> Scoring:
        """What finds the contributions."""
        return self._scoring

    def _judged_losses(self, batch: TrainingBatch) -> Judged:
        with batch.scoring():
            self._judge.observe(self._scoring.prepare(batch))
        with self._scoring.recording(), recorded() as rows, agreed() as agreements:
            losses = batch.losses(batch.pasted)
            with batch.scoring():
                scores = self._scoring.score(batch, rows)
        with batch.scoring():
            verdicts = self._judge.judge(batch.units, scores.units)
            self._judge.observe(scores.real)
        rejected = batch.units.rejected([verdict.trains for verdict in verdicts])
        if self._granularity == "instance":
            return losses_without(losses, rows, batch.pasted, rejected), verdicts
        # Another process may have nothing to run again.
        with keeping_to(agreements):
            again = [i for i, numbers in enumerate(rejected) if numbers]
            return _without_images(batch, losses, rows, again), verdicts


def _without_images(
    batch: TrainingBatch,
    losses: dict[str, Tensor],
    rows: Sequence[RowLosses],
    rejected: Sequence[int],
) -> dict[str, Tensor]:
    """Add the accepted images' rows and the rows of the others without their pastes.

    Divisors and the classes of a federated loss are those of the pasted batch for both.
    """
    if not rejected:
        return losses
    again = batch.losses([batch.original[i] for i in rejected], [batch.keys[i] for i in rejected])
    replaced = torch.tensor(rejected)
    mixed = dict(losses)
    for one in rows:
        keep = ~torch.isin(one.rows.image, replaced.to(one.rows.image.device))
        mixed[one.name] = one.total(keep) + again[one.name]
    return mixed
