"""Contributions by the gradient of the region heads, compared with one cache for all classes.

The heads' last layers (or all of their layers) are recorded. One backward pass down to these layers
gives the gradient of the real objects' rows, which feeds the cache, and the contribution of every
unit to the loss on real data (ghost scoring, see `bsgal_score.GhostScorer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bsgal_score import IGNORED, REFERENCE, GhostScorer
from bsgal_train.data.samples import REAL
from bsgal_train.detector.row_losses import RowLosses
from bsgal_train.processes import group as processes
from bsgal_train.selection.judge import RealScore
from bsgal_train.selection.numbering import Units
from bsgal_train.selection.scoring.gradient_score import step_model
from bsgal_train.selection.scoring.protocol import Scores
from bsgal_train.selection.scoring.real_gradient import HeadCache
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["HeadScoring"]


class HeadScoring:
    """The procedure of the module's docstring.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        self._config = setup.config
        self._optimizer = setup.optimizer
        self._real = HeadCache(setup)
        self._scorer = GhostScorer(list(self._real.modules.values()), self._real.cache)

    def prepare(self, batch: TrainingBatch) -> Sequence[RealScore]:
        """Feed the cache from class-matched images, where and when the recipe says so."""
        if self._config.effective_reference != "in_batch":
            self._real.refresh(batch)
        return ()

    @contextmanager
    def recording(self) -> Iterator[None]:
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

    def score(self, batch: TrainingBatch, rows: Sequence[RowLosses]) -> Scores:
        """Return one contribution per unit."""
        kinds = self._config.effective_losses
        n_units = len(batch.units)
        in_batch = self._config.effective_reference != "class_matched"
        form = self._config.form
        model = step_model(self._optimizer, self._real.cache) if form == "step" else None
        scores = self._scorer.score(
            torch.stack([one.total() for one in rows if one.kind in kinds]).sum(),
            _unit_index(rows, batch.units, REFERENCE if in_batch else IGNORED),
            n_units=n_units,
            norms=form == "cosine",
            step=model,
            update_cache=in_batch,
            rows=self._real.present(batch.pasted),
            group=processes.group(),
        )
        if form == "step" and model is None:
            # Adam has no second moments before its first step.
            return Scores([None] * n_units)
        found = scores.contributions(form)
        if form == "dot":
            found = [None if one is None else one / processes.n_processes() for one in found]
        return Scores(found)

    def state_dict(self) -> dict[str, Any]:
        """Return the cache."""
        return {"cache": self._real.cache.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._real.cache.load_state_dict(state["cache"])


def _unit_index(losses: Sequence[RowLosses], units: Units, real: int) -> dict[str, Tensor]:
    """Return what `GhostScorer.score` takes: module name to the unit of each of its rows.

    Args:
        losses: as recorded; those without modules are passed over.
        units: of the same batch.
        real: number for rows of real objects.
    """
    found = {}
    for one in losses:
        source = one.rows.source
        others = torch.where(source == REAL, real, IGNORED)
        index = torch.where(source >= 0, units.of_rows(one.rows), others)
        found.update(dict.fromkeys(one.modules, index))
    return found
