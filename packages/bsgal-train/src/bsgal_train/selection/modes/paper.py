"""`paper`: accept or reject the pasted images of a step by comparing two gradients.

The procedure of BSGAL's released ResNet-50 recipe (arXiv 2406.02435; the repository's
`configs/BSGAL`), three forward and three backward passes per step:

1. Reference. Real images that contain the pasted categories, only their annotated boxes as
   proposals (a cascade refines them from stage to stage), classification loss, summed over the
   stages; its gradient enters the cache c <- d c + (1 - d) g, which happens before the comparison.
2. Candidate. The pasted images; classification loss of the foreground proposals matched to a
   pasted object, over all sampled proposals, summed over the stages; its gradient is compared with
   the cache by cosine.
3. The real step: on the pasted images if the cosine is at least the threshold, else on the same
   crops without pastes.

One verdict holds for the whole batch, and every pasted instance in it is logged with it. With
`selection.policy` the threshold may be the quantile of recent scores, or move, as in the released
code's other modes.

What the released code does, and what became of it here. Named options of the recipe:

- The reference loss covers all classes, while the candidate's is masked by the federated loss:
  `selection.reference_classes=all`, the default; `federated` masks both.
- A batch without pasted objects, or without a proposal on one, scores 0, is accepted at -0.05 and
  enters the window of a quantile: `selection.nothing_to_judge=zero`. By default the verdict is
  `no_evidence`, the pasted images are trained on, and no window sees it.
- The cache forgets nearly everything at each step: `selection.decay`, 0.1 as released.

Mended, all deliberate. Departures from the released code:

- A non-finite score is `nonfinite` and never trained on. The original accepts it.
- Several processes share one cache and one verdict: gradients are averaged before they are
  compared. In the original every process has its own, and their verdicts can differ.
- Reference images whose crop holds no object are left out. The original then falls back to
  sampled proposals for the whole batch. If no object is left at all, the cache stays as it is.
- Every training image has its own reference image, whatever the batch size.
- Box and mask losses are not computed in the scoring passes, and the proposal network runs without
  a graph there; the gradients are those of the original procedure, the passes are cheaper.
- Sampling in all passes is a function of (seed, step), and torch's global generator is left as
  it was. The original overwrites it for the real pass too.
- The cache is kept per tensor, beside the model and in the run's checkpoints, and so are the
  window of recent scores and the count of steps.
- On a Mask R-CNN there is one box stage instead of three and no federated mask.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bsgal_score import GradientCache
from bsgal_train.data import ClassMatchedReference, TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.judge import Judge, Unit, decision_rows
from bsgal_train.selection.scoring.gradient_score import contribution
from bsgal_train.selection.scoring.passes import candidate_loss, gradients, reference_loss
from bsgal_train.selection.step import Selected

__all__ = ["PaperSelection"]


class PaperSelection:
    """The procedure of the module's docstring.

    Args:
        detector: whose parameters the cache follows.
        reference: draws the real images of pass 1.
        recipe: threshold, decay, options, and the precision of all three passes.
        optimizer: the run's, for the step-aware form.
    """

    def __init__(
        self,
        detector: nn.Module,
        reference: ClassMatchedReference,
        recipe: Recipe,
        optimizer: Optimizer,
    ) -> None:
        self._config = recipe.selection
        self._reference = reference
        self._precision = recipe.detector.precision
        self._optimizer = optimizer
        self._parameters = dict(detector.named_parameters())
        self._cache = GradientCache(
            self._parameters.items(), decay=recipe.selection.effective_decay
        )
        self._judge = Judge(recipe.selection, recipe.schedule.n_judgements)

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Score the pasted batch and return the losses of the images it is decided on."""
        began = time.perf_counter()
        pasted = [sample.pasted for sample in samples]
        keys = [sample.position for sample in samples]
        self._update_cache(detector, samples, seed)
        score = self._contribution(detector, pasted, seed, keys)
        groups = tuple(paste.frequency for sample in samples for paste in sample.pastes)
        judgement = self._judge.judge_joint(Unit(score, groups))
        scored = time.perf_counter()

        inputs = pasted if judgement.trains else [sample.original for sample in samples]
        losses = training_losses(detector, inputs, self._precision, seed, keys)
        self._judge.end_step()
        return Selected(
            losses=losses,
            decisions=decision_rows(step, samples, "batch", [judgement]),
            statistics={
                "n_pasted": processes.total(len(groups) if judgement.trains else 0),
                **self._judge.statistics([judgement]),
                "scoring_s": scored - began,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return cache, policy and counts."""
        return {"cache": self._cache.state_dict(), "judge": self._judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._cache.load_state_dict(state["cache"])
        self._judge.load_state_dict(state["judge"])

    def _update_cache(
        self, detector: nn.Module, samples: Sequence[TrainingSample], seed: int
    ) -> None:
        loss = reference_loss(
            detector,
            self._reference.for_step(samples, seed),
            self._precision,
            seed,
            kinds=self._config.effective_losses,
            all_classes=self._config.reference_classes == "all",
        )
        if loss is not None:
            self._cache.update(gradients(loss, self._parameters))

    def _contribution(
        self, detector: nn.Module, pasted: Sequence[Any], seed: int, keys: Sequence[int]
    ) -> float | None:
        loss = candidate_loss(
            detector, pasted, self._precision, seed, keys, kinds=self._config.effective_losses
        )
        score = None
        if loss is not None:
            candidate = gradients(loss, self._parameters)
            score = contribution(self._cache, candidate, self._config.form, self._optimizer)
        if score is None and self._config.nothing_to_judge == "zero":
            return 0.0
        return score
