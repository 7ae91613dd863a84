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

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bsgal_train.data.samples import TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.detector.agreement import agreed, keeping_to
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.judge import Judge, Judgement, Unit, decision_rows
from bsgal_train.selection.reject import first_units, losses_without
from bsgal_train.selection.scoring.protocol import Scoring
from bsgal_train.selection.step import Selected

__all__ = ["RowSelection"]


class RowSelection:
    """The procedure of the module's docstring.

    Args:
        scoring: finds the contributions.
        recipe: policy and precision.
        granularity: what is judged.
    """

    def __init__(
        self, scoring: Scoring, recipe: Recipe, granularity: Literal["image", "instance"]
    ) -> None:
        self._scoring = scoring
        self._precision = recipe.detector.precision
        self._granularity = granularity
        self._judge = Judge(recipe.selection, recipe.schedule.n_judgements)

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Score the pasted batch and return the losses of what is accepted of it."""
        began = time.perf_counter()
        self._judge.observe(self._scoring.prepare(detector, samples, step, seed))
        prepared = time.perf_counter()
        inputs = [sample.pasted for sample in samples]
        keys = [sample.position for sample in samples]
        with self._scoring.recording(), recorded() as rows, agreed() as agreements:
            losses = training_losses(detector, inputs, self._precision, seed, keys)
            ran = time.perf_counter()
            scores = self._scoring.score(samples, rows)
        judgements = self._judge.judge(self._units(samples, scores.units))
        self._judge.observe(scores.real)
        scored = time.perf_counter()
        if self._granularity == "instance":
            losses = self._without_instances(losses, rows, samples, judgements)
        else:
            rejected = [i for i, judgement in enumerate(judgements) if not judgement.trains]
            # Another process may have nothing to run again.
            with keeping_to(agreements):
                losses = self._without_images(detector, losses, rows, samples, rejected, seed)
        self._judge.end_step()
        per_instance = self._per_instance(samples, judgements)
        return Selected(
            losses=losses,
            decisions=decision_rows(step, samples, self._granularity, judgements),
            statistics={
                "n_pasted": processes.total(sum(judgement.trains for judgement in per_instance)),
                **self._judge.statistics(judgements),
                "scoring_s": (prepared - began) + (scored - ran),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return caches, policy and counts."""
        return {"scoring": self._scoring.state_dict(), "judge": self._judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._scoring.load_state_dict(state["scoring"])
        self._judge.load_state_dict(state["judge"])

    def _units(
        self, samples: Sequence[TrainingSample], contributions: Sequence[float | None]
    ) -> list[Unit]:
        groups = [tuple(paste.frequency for paste in sample.pastes) for sample in samples]
        if self._granularity == "instance":
            groups = [(group,) for of_image in groups for group in of_image]
        return [Unit(one, group) for one, group in zip(contributions, groups, strict=True)]

    def _per_instance(
        self, samples: Sequence[TrainingSample], judgements: Sequence[Judgement]
    ) -> list[Judgement]:
        if self._granularity == "instance":
            return list(judgements)
        return [
            judgement
            for judgement, sample in zip(judgements, samples, strict=True)
            for _ in sample.pastes
        ]

    def _without_instances(
        self,
        losses: dict[str, Tensor],
        rows: Sequence[RowLosses],
        samples: Sequence[TrainingSample],
        judgements: Sequence[Judgement],
    ) -> dict[str, Tensor]:
        firsts = first_units(samples)
        rejected = [
            {
                number
                for number in range(len(sample.pastes))
                if not judgements[firsts[position] + number].trains
            }
            for position, sample in enumerate(samples)
        ]
        return losses_without(losses, rows, [sample.pasted for sample in samples], rejected)

    def _without_images(
        self,
        detector: nn.Module,
        losses: dict[str, Tensor],
        rows: Sequence[RowLosses],
        samples: Sequence[TrainingSample],
        rejected: Sequence[int],
        seed: int,
    ) -> dict[str, Tensor]:
        """Add the accepted images' rows and the rows of the others without their pastes.

        Divisors and the classes of a federated loss are those of the pasted batch for both.
        """
        if not rejected:
            return losses
        originals = [samples[i].original for i in rejected]
        keys = [samples[i].position for i in rejected]
        again = training_losses(detector, originals, self._precision, seed, keys)
        replaced = torch.tensor(rejected)
        mixed = dict(losses)
        for one in rows:
            keep = ~torch.isin(one.rows.image, replaced.to(one.rows.image.device))
            mixed[one.name] = one.total(keep) + again[one.name]
        return mixed
