"""`paper`: accept or reject the pasted images of a step by comparing two gradients.

The procedure of BSGAL's released ResNet-50 recipe (arXiv 2406.02435; the repository's
`configs/BSGAL`), three forward and three backward passes per step:

1. Reference. Real images that contain the pasted categories, only their annotated boxes as
   proposals, classification loss; its gradient enters the cache c <- d c + (1 - d) g, which
   happens before the comparison.
2. Candidate. The pasted images; classification loss of the foreground proposals matched to a
   pasted object, over all sampled proposals; its gradient is compared with the cache by cosine.
3. The real step: on the pasted images if the cosine is at least the threshold, else on the same
   crops without pastes.

One verdict holds for the whole batch, and every pasted instance in it is logged with it.

Departures from the released code, all deliberate:

- Mask R-CNN with one box stage instead of CenterNet2 with three cascade stages, so there is one
  classification loss where the original sums three.
- No federated mask on the classification loss of pass 2; here both losses cover all classes.
- A batch without pasted objects, or without a proposal on one, has no cosine: the verdict is
  `no_evidence` and the pasted images are trained on. The original scores it 0.
- A non-finite score is `nonfinite` and never trained on. The original accepts it.
- Reference images whose crop holds no object are left out. The original then falls back to
  sampled proposals for the whole batch. If no object is left at all, the cache stays as it is.
- Every training image has its own reference image, whatever the batch size.
- Only the losses that are compared are computed in the scoring passes, the proposal network runs
  without a graph there, and box features only for the proposals that count; the gradients are
  those of the original procedure, the passes are cheaper.
- Sampling in all passes is a function of (seed, step), and torch's global generator is left as
  it was. The original overwrites it for the real pass too.
- The cache is kept per tensor, beside the model and in the run's checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from bsgal_score import FixedThreshold, GradientCache, Verdict
from bsgal_train.decision_log import Decision
from bsgal_train.detector import training_losses
from bsgal_train.recipe import Precision, SelectionConfig
from bsgal_train.selection.base import Selected
from bsgal_train.selection.class_losses import candidate_loss, gradients, reference_loss

if TYPE_CHECKING:
    from bsgal_train.data import ClassMatchedReference, TrainingSample

__all__ = ["PaperSelection"]


class PaperSelection:
    """The procedure of the module's docstring.

    Args:
        detector: whose parameters the cache follows.
        reference: draws the real images of pass 1.
        config: threshold and decay.
        precision: of all three passes.
    """

    def __init__(
        self,
        detector: nn.Module,
        reference: ClassMatchedReference,
        config: SelectionConfig,
        precision: Precision,
    ) -> None:
        self._reference = reference
        self._precision = precision
        self._cache = GradientCache(detector.named_parameters(), decay=config.decay)
        self._policy = FixedThreshold(config.threshold)
        self._n_accepted = 0
        self._n_judged = 0

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Score the pasted batch and return the losses of the images it is decided on."""
        real = self._reference.batch(samples, np.random.default_rng(seed))
        loss = reference_loss(detector, real, self._precision)
        if loss is not None:
            self._cache.update(gradients(loss, detector))

        pasted = [sample.pasted for sample in samples]
        contribution = self._contribution(detector, pasted, seed)
        decision = self._policy.decide(contribution)
        verdict = decision.verdict
        self._n_judged += verdict in (Verdict.ACCEPT, Verdict.REJECT)
        self._n_accepted += verdict is Verdict.ACCEPT
        accepted_share = self._n_accepted / self._n_judged if self._n_judged else None

        inputs = pasted if decision.trains else [sample.original for sample in samples]
        statistics = {
            "n_pasted": float(
                sum(len(sample.pastes) for sample in samples) if decision.trains else 0
            )
        }
        if contribution is not None:
            statistics["contribution"] = contribution
        if accepted_share is not None:
            statistics["accepted_share"] = accepted_share
        return Selected(
            losses=training_losses(detector, inputs, self._precision, seed),
            decisions=tuple(
                Decision(
                    step=step,
                    image_id=sample.original["image_id"],
                    instance_id=paste.instance_id,
                    category_id=paste.category_id,
                    frequency=paste.frequency,
                    granularity="batch",
                    contribution=contribution,
                    threshold=decision.threshold,
                    verdict=verdict.value,
                    accepted_share=accepted_share,
                )
                for sample in samples
                for paste in sample.pastes
            ),
            statistics=statistics,
        )

    def _contribution(
        self, detector: nn.Module, pasted: Sequence[Mapping[str, Any]], seed: int
    ) -> float | None:
        loss: Tensor | None = candidate_loss(detector, pasted, self._precision, seed)
        return None if loss is None else self._cache.cosine(gradients(loss, detector))

    def state_dict(self) -> dict[str, Any]:
        """Return cache, policy and counts."""
        return {
            "cache": self._cache.state_dict(),
            "policy": self._policy.state_dict(),
            "n_accepted": self._n_accepted,
            "n_judged": self._n_judged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._cache.load_state_dict(state["cache"])
        self._policy.load_state_dict(state["policy"])
        self._n_accepted = state["n_accepted"]
        self._n_judged = state["n_judged"]
