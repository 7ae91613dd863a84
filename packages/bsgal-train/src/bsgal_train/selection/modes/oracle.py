"""`oracle`: the exact effect of every pasted object on the loss on real data, for studies.

For each pasted object the run's own step, clipping included, is taken with and without its rows (or
on them alone), the loss of class-matched real images is compared, and everything is put back bit
for bit (`bsgal_score.loss_difference`). That is two training steps and two more forward passes per
object. Then rejected objects give no loss, as in `instance`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsgal_score import loss_difference
from bsgal_train.data import ClassMatchedReference, TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.judge import Judge, Unit, decision_rows
from bsgal_train.selection.reject import first_units, losses_without
from bsgal_train.selection.scoring.passes import reference_loss
from bsgal_train.selection.step import Selected

__all__ = ["OracleSelection"]


class OracleSelection:
    """The procedure of the module's docstring.

    Args:
        reference: draws class-matched real images.
        recipe: whether objects are tried alone or in the batch, policy and precision.
        update: the run's step, which is tried.

    Raises:
        ValueError: there are several processes.
    """

    def __init__(
        self, reference: ClassMatchedReference, recipe: Recipe, update: OptimizerStep
    ) -> None:
        if processes.n_processes() > 1:
            raise ValueError("selection.mode=oracle runs in one process only")
        self._config = recipe.selection
        self._reference = reference
        self._precision = recipe.detector.precision
        self._update = update
        self._kinds = recipe.selection.effective_losses
        self._judge = Judge(recipe.selection, recipe.schedule.n_judgements)

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Try every pasted object and return the losses without the rejected ones."""
        began = time.perf_counter()
        firsts = first_units(samples)
        contributions = self._contributions(detector, samples, firsts, seed)
        groups = [(paste.frequency,) for sample in samples for paste in sample.pastes]
        judgements = self._judge.judge(
            [Unit(one, group) for one, group in zip(contributions, groups, strict=True)]
        )
        tried = time.perf_counter()
        losses, rows = self._forward(detector, samples, seed)
        rejected = [
            {k for k in range(len(s.pastes)) if not judgements[firsts[i] + k].trains}
            for i, s in enumerate(samples)
        ]
        self._judge.end_step()
        return Selected(
            losses=losses_without(losses, rows, [s.pasted for s in samples], rejected),
            decisions=decision_rows(step, samples, "instance", judgements),
            statistics={
                "n_pasted": processes.total(sum(judgement.trains for judgement in judgements)),
                **self._judge.statistics(judgements),
                "scoring_s": tried - began,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return policy and counts."""
        return {"judge": self._judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._judge.load_state_dict(state["judge"])

    def _contributions(
        self, detector: nn.Module, samples: Sequence[TrainingSample], firsts: list[int], seed: int
    ) -> list[float | None]:
        real = self._reference.for_step(samples, seed)
        keys = [sample.position for sample in samples]

        def real_loss() -> Tensor:
            loss = reference_loss(detector, real, self._precision, seed, keys, kinds=self._kinds)
            return torch.zeros(()) if loss is None else loss

        if not firsts[-1] or not float(real_loss().detach()):
            return [None] * firsts[-1]
        with torch.no_grad():
            _, rows = self._forward(detector, samples, seed)
        return [
            self._difference(detector, samples, position, number, real_loss, rows, seed)
            for position, sample in enumerate(samples)
            for number in range(len(sample.pastes))
        ]

    def _difference(
        self,
        detector: nn.Module,
        samples: Sequence[TrainingSample],
        position: int,
        number: int,
        real_loss: Any,
        rows: Sequence[RowLosses],
        seed: int,
    ) -> float | None:
        def matched(one: RowLosses) -> Tensor:
            return (one.rows.image == position) & (one.rows.source == number)

        if not any(bool(matched(one).any()) for one in rows if one.kind in self._kinds):
            return None

        def candidate() -> Tensor:
            _, found = self._forward(detector, samples, seed)
            return torch.stack([one.total(matched(one)) for one in found]).sum()

        def rest() -> Tensor:
            losses, found = self._forward(detector, samples, seed)
            inputs = [sample.pasted for sample in samples]
            without = [{number} if i == position else set() for i in range(len(samples))]
            kept = losses_without(losses, found, inputs, without)
            return torch.stack(list(kept.values())).sum()

        def clip() -> None:
            self._update.clip()

        return loss_difference(
            detector,
            self._update.optimizer,
            reference_loss=real_loss,
            candidate_loss=candidate,
            batch_loss=rest if self._config.oracle_step == "in_batch" else None,
            before_step=clip,
        )

    def _forward(
        self, detector: nn.Module, samples: Sequence[TrainingSample], seed: int
    ) -> tuple[dict[str, Tensor], list[RowLosses]]:
        inputs = [sample.pasted for sample in samples]
        keys = [sample.position for sample in samples]
        with recorded() as rows:
            losses = training_losses(detector, inputs, self._precision, seed, keys)
        return losses, rows
