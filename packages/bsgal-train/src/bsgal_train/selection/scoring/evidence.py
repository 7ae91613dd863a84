"""Contributions that are p-values: what all looks so far say against each pasted object.

The training pass itself is a look at every object in it, pasted or real (see `selection.evidence`);
no gradient is asked for. Before the first step, real images of every class are visited once, so
that there is something to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bsgal_score import EvidenceTable
from bsgal_train.data import TrainingSample
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.selection.evidence import InstanceEvidence
from bsgal_train.selection.judge import RealScore
from bsgal_train.selection.scoring.looks import looks_at, recorded_features
from bsgal_train.selection.scoring.protocol import Scores
from bsgal_train.selection.scoring.real_gradient import classifiers
from bsgal_train.selection.scoring.visit import ClassVisit
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["EvidenceScoring"]


class EvidenceScoring:
    """The procedure of the module's docstring.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        before = setup.config.evidence
        self._detector = setup.detector
        self._evidence = InstanceEvidence(
            classifiers(setup.detector)[0].in_features,
            setup.reference.frequencies,
            setup.config,
            EvidenceTable.from_parquet(before) if before else None,
        )
        self._features: list[Tensor] = []
        self._visit = ClassVisit(setup)

    def prepare(self, batch: TrainingBatch) -> Sequence[RealScore]:
        """Visit real images of every class, once in a run."""
        for images, keys in self._visit.passes(batch.seed):
            with torch.no_grad(), self.recording(), recorded() as rows:
                batch.losses(images, keys)
                visited = [
                    TrainingSample(key, one, one, ()) for key, one in zip(keys, images, strict=True)
                ]
                self._look(visited, rows)
        return ()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the input of the classifier."""
        with recorded_features(self._detector) as self._features:
            yield

    def score(self, batch: TrainingBatch, rows: Sequence[RowLosses]) -> Scores:
        """Return a p-value per pasted object; None where there is too little evidence."""
        self._look(batch.samples, rows)
        ids = [paste.instance_id for sample in batch.samples for paste in sample.pastes]
        p_values = self._evidence.p_values(ids).tolist()
        return Scores([None if math.isnan(one) else one for one in p_values])

    def table(self, ids: Sequence[str]) -> EvidenceTable:
        """Return what is known of instances, by the pool's ids."""
        return self._evidence.table(ids)

    def state_dict(self) -> dict[str, Any]:
        """Return the evidence, and whether the classes have been visited."""
        return {"evidence": self._evidence.state_dict(), "has_visited": self._visit.is_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._evidence.load_state_dict(state["evidence"])
        self._visit.is_done = bool(state["has_visited"])

    def _look(self, samples: Sequence[TrainingSample], rows: Sequence[RowLosses]) -> None:
        (features,) = self._features
        self._evidence.take(looks_at(rows, features, samples), is_shared=False)
