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

import time
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bsgal_train.data import ClassMatchedReference, TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import recorded
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.judge import Judge, Unit, decision_rows
from bsgal_train.selection.scoring.gradient_score import contribution
from bsgal_train.selection.scoring.passes import gradients, pasted_loss
from bsgal_train.selection.scoring.real_gradient import HeadCache
from bsgal_train.selection.step import Selected

__all__ = ["BatchSelection"]


class BatchSelection:
    """The procedure of the module's docstring.

    Args:
        detector: whose heads report their losses row by row.
        reference: draws class-matched real images.
        recipe: form, policy and precision.
        optimizer: the run's, for the step-aware form.
    """

    def __init__(
        self,
        detector: nn.Module,
        reference: ClassMatchedReference,
        recipe: Recipe,
        optimizer: Optimizer,
    ) -> None:
        self._config = config = recipe.selection
        self._precision = recipe.detector.precision
        self._optimizer = optimizer
        self._kinds = config.effective_losses
        self._real = HeadCache(detector, reference, config, self._kinds, self._precision)
        self._judge = Judge(config, recipe.schedule.n_judgements)

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Score the pasted batch and return the losses of the images it is decided on."""
        began = time.perf_counter()
        self._real.refresh(detector, samples, step, seed)
        refreshed = time.perf_counter()
        keys = [sample.position for sample in samples]
        pasted = [sample.pasted for sample in samples]
        with recorded() as rows:
            losses = training_losses(detector, pasted, self._precision, seed, keys)
        ran = time.perf_counter()
        loss = pasted_loss(rows, self._kinds)
        score = None
        if loss is not None:
            candidate = gradients(loss, self._real.parameters, retain_graph=True)
            score = contribution(self._real.cache, candidate, self._config.form, self._optimizer)
        groups = tuple(paste.frequency for sample in samples for paste in sample.pastes)
        judgement = self._judge.judge_joint(Unit(score, groups))
        scored = time.perf_counter()
        if not judgement.trains:
            # Lets go of the pasted images' graph before the next one is built.
            del losses, rows, loss
            originals = [sample.original for sample in samples]
            losses = training_losses(detector, originals, self._precision, seed, keys)
        self._judge.end_step()
        return Selected(
            losses=losses,
            decisions=decision_rows(step, samples, "batch", [judgement]),
            statistics={
                "n_pasted": processes.total(len(groups) if judgement.trains else 0),
                **self._judge.statistics([judgement]),
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
