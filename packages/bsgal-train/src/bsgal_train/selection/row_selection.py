"""`instance` and `image`: score every unit of a step from one backward pass through the heads.

One forward pass on the pasted images, in which the region heads' last layers (or all of their
layers) are recorded. One backward pass down to these layers gives the gradient of the real objects'
rows, which feeds the cache, and the contribution of every unit to the loss on real data (ghost
scoring, see `bsgal_score.GhostScorer`):
a unit is a pasted object, or all pasted objects of an image. Then one full backward pass:

- `instance`: on the same graph, with the rejected objects' proposals and anchors giving no loss at
  all, neither as object nor as background.
- `image`: on the same graph for the accepted images; the rejected images are run again without
  their pastes.

A unit's gradient is that of the rows matched to its objects, so one without any matched row is
`no_evidence` and trained on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bsgal_score import GhostScorer
from bsgal_train import processes
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import RowLosses, normalized_by, recorded
from bsgal_train.recipe import Recipe
from bsgal_train.selection.base import Selected
from bsgal_train.selection.contribution import step_model
from bsgal_train.selection.judge import Judge, Judgement, Unit, decision_rows
from bsgal_train.selection.real_gradient import HeadCache
from bsgal_train.selection.units import first_units, losses_without, unit_index

if TYPE_CHECKING:
    from bsgal_train.data import ClassMatchedReference, TrainingSample

__all__ = ["RowSelection"]


class RowSelection:
    """The procedure of the module's docstring.

    Args:
        detector: whose heads report their losses row by row.
        reference: draws class-matched real images.
        recipe: form, reference, policy and precision.
        optimizer: the run's, for the step-aware form.
        granularity: what is judged.
    """

    def __init__(
        self,
        detector: nn.Module,
        reference: ClassMatchedReference,
        recipe: Recipe,
        optimizer: Optimizer,
        granularity: Literal["image", "instance"],
    ) -> None:
        self._config = config = recipe.selection
        self._precision = recipe.detector.precision
        self._optimizer = optimizer
        self._granularity = granularity
        self._kinds = config.effective_losses
        self._real = HeadCache(detector, reference, config, self._kinds, self._precision)
        self._scorer = GhostScorer(list(self._real.modules.values()), self._real.cache)
        self._judge = Judge(config, recipe.schedule.n_judgements)

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Score the pasted batch and return the losses of what is accepted of it."""
        began = time.perf_counter()
        if self._config.reference != "in_batch":
            self._real.refresh(detector, samples, step, seed)
        refreshed = time.perf_counter()
        inputs = [sample.pasted for sample in samples]
        keys = [sample.position for sample in samples]
        with self._recorded(), recorded() as rows:
            losses = training_losses(detector, inputs, self._precision, seed, keys)
            ran = time.perf_counter()
            contributions = self._score(samples, rows)
        judgements = self._judge.judge(self._units(samples, contributions))
        scored = time.perf_counter()
        if self._granularity == "instance":
            losses = self._without_instances(losses, rows, samples, judgements)
        else:
            losses = self._without_images(detector, losses, rows, samples, judgements, seed)
        self._judge.end_step()
        per_instance = self._per_instance(samples, judgements)
        return Selected(
            losses=losses,
            decisions=decision_rows(step, samples, self._granularity, judgements),
            statistics={
                "n_pasted": processes.total(sum(judgement.trains for judgement in per_instance)),
                **self._judge.statistics(judgements),
                "scoring_s": (refreshed - began) + (scored - ran),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return cache, policy and counts."""
        return {"cache": self._real.cache.state_dict(), "judge": self._judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._real.cache.load_state_dict(state["cache"])
        self._judge.load_state_dict(state["judge"])

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record from the first call of a scored layer on: recording is not free."""
        with ExitStack() as stack:
            begun = False

            def begin(module: nn.Module, inputs: Any) -> None:
                nonlocal begun
                if not begun:
                    begun = True
                    stack.enter_context(self._scorer)

            for scored in self._real.modules.values():
                for module in scored.modules():
                    stack.callback(module.register_forward_pre_hook(begin).remove)
            yield

    def _score(
        self, samples: Sequence[TrainingSample], rows: Sequence[RowLosses]
    ) -> list[float | None]:
        """Return one contribution per unit."""
        by_instance = self._granularity == "instance"
        firsts = first_units(samples)
        n_units = firsts[-1] if by_instance else len(samples)
        in_batch = self._config.reference != "class_matched"
        form = self._config.form
        model = step_model(self._optimizer, self._real.cache) if form == "step" else None
        scores = self._scorer.score(
            torch.stack([one.total() for one in rows if one.kind in self._kinds]).sum(),
            unit_index(rows, firsts if by_instance else None, real_is_reference=in_batch),
            n_units=n_units,
            norms=form == "cosine",
            step=model,
            update_cache=in_batch,
            rows=self._real.present([sample.pasted["instances"] for sample in samples]),
            group=processes.group(),
        )
        if form == "step" and model is None:
            # Adam has no second moments before its first step.
            return [None] * n_units
        found = scores.contributions(form)
        if form == "dot":
            return [None if value is None else value / processes.n_processes() for value in found]
        return found

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
        judgements: Sequence[Judgement],
        seed: int,
    ) -> dict[str, Tensor]:
        """Add the accepted images' rows and the rows of the others without their pastes.

        Divisors are those of the pasted batch for both.
        """
        rejected = [i for i, judgement in enumerate(judgements) if not judgement.trains]
        if not rejected:
            return losses
        originals = [samples[i].original for i in rejected]
        keys = [samples[i].position for i in rejected]
        # Another process may have nothing to run here, so nothing can be agreed on.
        with recorded() as again, normalized_by(lambda normalizer: normalizer):
            training_losses(detector, originals, self._precision, seed, keys)
        without = {one.name: one.per_row.sum() for one in again}
        replaced = torch.tensor(rejected)
        mixed = dict(losses)
        for one in rows:
            keep = ~torch.isin(one.rows.image, replaced.to(one.rows.image.device))
            mixed[one.name] = one.total(keep) + without[one.name] / one.normalizer
        return mixed
