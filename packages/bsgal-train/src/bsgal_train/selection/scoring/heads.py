"""Contributions by the gradient of the region heads, compared with one cache for all classes.

The heads' last layers (or all of their layers) are recorded. One backward pass down to these layers
gives the gradient of the real objects' rows, which feeds the cache, and the contribution of every
unit to the loss on real data (ghost scoring, see `bsgal_score.GhostScorer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from bsgal_score import GhostScorer
from bsgal_train.data import ClassMatchedReference
from bsgal_train.data.samples import TrainingSample
from bsgal_train.detector.row_losses import RowLosses
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.judge import Unit
from bsgal_train.selection.reject import first_units, unit_index
from bsgal_train.selection.scoring.gradient_score import step_model
from bsgal_train.selection.scoring.protocol import Scores
from bsgal_train.selection.scoring.real_gradient import HeadCache

__all__ = ["HeadScoring"]


class HeadScoring:
    """The procedure of the module's docstring.

    Args:
        detector: whose heads report their losses row by row.
        reference: draws class-matched real images.
        recipe: form, reference and precision.
        optimizer: the run's, for the step-aware form.
        granularity: what a unit is.
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
        self._optimizer = optimizer
        self._granularity = granularity
        self._kinds = config.effective_losses
        self._real = HeadCache(detector, reference, config, self._kinds, recipe.detector.precision)
        self._scorer = GhostScorer(list(self._real.modules.values()), self._real.cache)

    def prepare(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Sequence[Unit]:
        """Feed the cache from class-matched images, where and when the recipe says so."""
        if self._config.effective_reference != "in_batch":
            self._real.refresh(detector, samples, step, seed)
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

    def score(self, samples: Sequence[TrainingSample], rows: Sequence[RowLosses]) -> Scores:
        """Return one contribution per unit."""
        by_instance = self._granularity == "instance"
        firsts = first_units(samples)
        n_units = firsts[-1] if by_instance else len(samples)
        in_batch = self._config.effective_reference != "class_matched"
        form = self._config.form
        model = step_model(self._optimizer, self._real.cache) if form == "step" else None
        scores = self._scorer.score(
            torch.stack([one.total() for one in rows if one.kind in self._kinds]).sum(),
            unit_index(rows, firsts if by_instance else None, real_is_reference=in_batch),
            n_units=n_units,
            norms=form == "cosine",
            step=model,
            update_cache=in_batch,
            rows=self._real.present([sample.pasted for sample in samples]),
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
