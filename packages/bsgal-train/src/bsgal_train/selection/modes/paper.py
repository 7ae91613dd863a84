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

from bsgal_score import GradientCache
from bsgal_train.selection.scoring.gradient_score import contribution
from bsgal_train.selection.scoring.passes import candidate_loss, gradients, reference_loss
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.step import Judged, JudgingStep
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["PaperSelection"]


class PaperSelection(JudgingStep):
    """The procedure of the module's docstring.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._reference = setup.reference
        self._optimizer = setup.optimizer
        self._parameters = dict(setup.detector.named_parameters())
        self._cache = GradientCache(self._parameters.items(), decay=setup.config.effective_decay)
        self._stateful["cache"] = self._cache

    def _judged_losses(self, batch: TrainingBatch) -> Judged:
        with batch.scoring():
            self._update_cache(batch)
            verdicts = self._judge.judge(batch.units, [self._contribution(batch)])
        return batch.losses(batch.pasted if verdicts[0].trains else batch.original), verdicts

    def _update_cache(self, batch: TrainingBatch) -> None:
        loss = reference_loss(
            batch.detector,
            self._reference.for_step(batch.samples, batch.seed),
            self._precision,
            batch.seed,
            kinds=self._config.effective_losses,
            all_classes=self._config.reference_classes == "all",
        )
        if loss is not None:
            self._cache.update(gradients(loss, self._parameters))

    def _contribution(self, batch: TrainingBatch) -> float | None:
        loss = candidate_loss(
            batch.detector,
            batch.pasted,
            self._precision,
            batch.seed,
            batch.keys,
            kinds=self._config.effective_losses,
        )
        score = None
        if loss is not None:
            candidate = gradients(loss, self._parameters)
            score = contribution(self._cache, candidate, self._config.form, self._optimizer)
        if score is None and self._config.nothing_to_judge == "zero":
            return 0.0
        return score
