"""Contributions by the gradient on an object's own row of the classifier.

Each pasted object is compared with the real objects of its own class, on the parameters that say
what this class is (see `bsgal_score.ClassRowScorer`). The real objects of the step are scored in
the same way before they feed the cache, which tells what score a good object has. Before the first
step, real images of every class are visited once, so that there is something to compare with; no
graph is built below the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from bsgal_score import ClassRowScorer
from bsgal_train.data.samples import REAL
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.processes import group as processes
from bsgal_train.selection.judge import RealScore
from bsgal_train.selection.numbering import Units
from bsgal_train.selection.scoring.passes import reference_loss
from bsgal_train.selection.scoring.protocol import Scores
from bsgal_train.selection.scoring.real_gradient import classifiers
from bsgal_train.selection.scoring.visit import ClassVisit
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["ClassRowScoring"]


class ClassRowScoring:
    """The procedure of the module's docstring.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        self._reference = setup.reference
        self._precision = setup.recipe.detector.precision
        decay = setup.config.effective_decay
        self._scorer = ClassRowScorer(classifiers(setup.detector), decay=decay)
        self._visit = ClassVisit(setup)

    def prepare(self, batch: TrainingBatch) -> Sequence[RealScore]:
        """Visit real images of every class, once in a run."""
        found: list[RealScore] = []
        for images, keys in self._visit.passes(batch.seed):
            with self._scorer, recorded() as rows:
                loss = reference_loss(
                    batch.detector,
                    images,
                    self._precision,
                    batch.seed,
                    keys,
                    kinds=("cls",),
                    through_trunk=False,
                )
                if loss is not None:
                    found += self._score(loss, rows, None, []).real
        return found

    def recording(self) -> AbstractContextManager[Any]:
        """Record the classifiers."""
        return self._scorer

    def score(self, batch: TrainingBatch, rows: Sequence[RowLosses]) -> Scores:
        """Return one contribution per pasted object, and per class of real objects in an image."""
        losses = [one.total() for one in rows if one.kind == "cls"]
        pasted = [paste.class_index for sample in batch.samples for paste in sample.pastes]
        return self._score(torch.stack(losses).sum(), rows, batch.units, pasted)

    def state_dict(self) -> dict[str, Any]:
        """Return the cache, and whether the classes have been visited."""
        return {"scorer": self._scorer.state_dict(), "has_visited": self._visit.is_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._scorer.load_state_dict(state["scorer"])
        self._visit.is_done = bool(state["has_visited"])

    def _score(
        self, loss: Tensor, rows: Sequence[RowLosses], units: Units | None, pasted: list[int]
    ) -> Scores:
        """Score pasted objects and, as units behind them, the real ones by image and class."""
        calls = [one.rows for one in rows if one.kind == "cls"]
        n_classes = self._scorer.n_classes
        keys = []
        for call in calls:
            assert call.class_index is not None, "heads report the classes of their rows"
            keys.append(call.image * n_classes + call.class_index)
        real = [call.source == REAL for call in calls]
        found = torch.unique(
            torch.cat([key[chosen] for key, chosen in zip(keys, real, strict=True)])
        )
        indices = []
        for call, key, is_real in zip(calls, keys, real, strict=True):
            index = torch.full_like(call.source, -1) if units is None else units.of_rows(call)
            index[is_real] = len(pasted) + torch.searchsorted(found, key[is_real])
            indices.append(index)
        own = torch.tensor(pasted, dtype=torch.int64, device=found.device)
        real_classes = found % n_classes
        is_reference = torch.arange(len(pasted) + len(found), device=found.device) >= len(pasted)
        scores = self._scorer.score(
            loss,
            indices,
            torch.cat([own, real_classes]),
            is_reference,
            group=processes.group(),
        )
        frequencies = self._reference.frequencies
        return Scores(
            scores[: len(pasted)],
            tuple(
                RealScore(score, frequencies[class_index])
                for score, class_index in zip(
                    scores[len(pasted) :], real_classes.tolist(), strict=True
                )
            ),
        )
