"""What every selection mode does in a training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from bsgal_train.data import TrainingSample
from bsgal_train.processes import group as processes
from bsgal_train.run_folder.decision_log import Decision
from bsgal_train.selection.judge import Judge, UnitVerdict
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.steady import steady_backbone
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["Judged", "JudgingStep", "Selected", "SelectionStep"]

Judged: TypeAlias = tuple[dict[str, Tensor], Sequence[UnitVerdict]]
"""The losses to minimise, and the verdict on each unit of the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selected:
    """What a step trains on.

    Attributes:
        losses: the detector's named losses with their graph; their sum is minimised.
        decisions: one row per judged instance, empty for modes that judge nothing.
        statistics: numbers of the step for the metrics.
    """

    losses: dict[str, Tensor]
    decisions: tuple[Decision, ...] = ()
    statistics: dict[str, float]


class SelectionStep(ABC):
    """A selection mode: decides, then returns the losses of what it decided on.

    Modes live beside the detector. They leave its weights, their `.grad` and torch's global
    generator as they found them.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        self._config = setup.config
        self._precision = setup.recipe.detector.precision
        self._granularity = setup.granularity
        self._stateful: dict[str, Any] = {}

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Return the losses to minimise in `step`; `seed` decides all sampling in it."""
        batch = TrainingBatch(detector, samples, step, seed, self._precision, self._granularity)
        is_steady = self._config.spec.scores_the_training_pass
        with steady_backbone(detector) if is_steady else nullcontext():
            return self._select(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in types that `torch.save` stores without pickling."""
        return {name: part.state_dict() for name, part in self._stateful.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])

    @abstractmethod
    def _select(self, batch: TrainingBatch) -> Selected:
        """Return what the step trains on."""


class JudgingStep(SelectionStep):
    """A mode that gives every unit a verdict.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._judge = Judge(setup.config, setup.recipe.schedule.n_judgements)
        self._stateful["judge"] = self._judge

    @abstractmethod
    def _judged_losses(self, batch: TrainingBatch) -> Judged:
        """Return the losses to minimise, and the verdict on each unit of the batch."""

    def _select(self, batch: TrainingBatch) -> Selected:
        losses, verdicts = self._judged_losses(batch)
        self._judge.end_step()
        return Selected(
            losses=losses,
            decisions=tuple(_decisions(batch, verdicts)),
            statistics={
                "n_pasted": processes.total(
                    sum(verdicts[unit].trains for units in batch.units.of_pastes for unit in units)
                ),
                **self._judge.statistics(verdicts),
                "scoring_s": batch.scoring_s,
            },
        )


def _decisions(batch: TrainingBatch, verdicts: Sequence[UnitVerdict]) -> list[Decision]:
    """Return one row of the decision log per pasted instance."""
    return [
        Decision(
            step=batch.step,
            image_id=sample.original.image_id,
            instance_id=paste.instance_id,
            category_id=paste.category_id,
            frequency=paste.frequency,
            granularity=batch.units.granularity,
            contribution=verdicts[unit].contribution,
            threshold=verdicts[unit].threshold,
            verdict=verdicts[unit].verdict.value,
            accepted_share=verdicts[unit].accepted_share,
        )
        for sample, units in zip(batch.samples, batch.units.of_pastes, strict=True)
        for paste, unit in zip(sample.pastes, units, strict=True)
    ]
