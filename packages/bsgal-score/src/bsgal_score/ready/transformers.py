"""Score, decide and reject in the loop of transformers' `Trainer`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .._ghost import GhostScorer
from .._policies import Policy
from .._unit_index import REFERENCE
from .._unit_scores import Form
from .._verdict import Decision


class SelectsSamples:
    """Mixin of a `Trainer`: the samples of a batch are units, and rejected ones teach nothing.

        class SelectingTrainer(SelectsSamples, Trainer): ...

        trainer = SelectingTrainer(model, TrainingArguments(..., remove_unused_columns=False), ...)
        trainer.select_samples(scorer, policy)

    Every sample has an entry `is_real`: true ones feed the cache, the others are judged. It is
    taken out of the batch before the model sees it. In several processes the cache is joint.
    """

    scorer: GhostScorer | None = None
    decisions: list[Decision]
    """Of the units of the last batch, in order; real samples have none."""

    def select_samples(
        self,
        scorer: GhostScorer,
        policy: Policy,
        *,
        form: Form = "cosine",
        is_real: str = "is_real",
    ) -> None:
        """Begin to select.

        Args:
            scorer: Of the model, or of its head, with a cache of the same parameters. The last
                layers have to be among them.
            policy: Judges the units.
            form: What it judges.
            is_real: Name of the entry that tells real samples, bool.
        """
        self.scorer, self.policy, self.form, self.is_real = scorer, policy, form, is_real
        self.decisions = []

    def compute_loss(
        self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return what the trainer computes, with the rejected samples masked in its gradients.

        Raises:
            ValueError: If a batch does not say which samples are real.
        """
        parent: Any = super()
        scorer: GhostScorer | None = self.scorer
        if scorer is None:
            return parent.compute_loss(model, inputs, *args, **kwargs)
        inputs = dict(inputs)
        is_real = inputs.pop(self.is_real, None)
        if not (model.training and torch.is_grad_enabled()):
            return parent.compute_loss(model, inputs, *args, **kwargs)
        if not isinstance(is_real, Tensor) or is_real.dim() != 1:
            raise ValueError(
                f"the batch has no entry {self.is_real!r} that says for every sample whether it is "
                f"real; it has {sorted(inputs)}. Add it to the samples, and pass "
                "remove_unused_columns=False in TrainingArguments"
            )
        generated = ~is_real.bool()
        index = torch.where(generated, generated.cumsum(0) - 1, REFERENCE)
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        with scorer:
            found = parent.compute_loss(model, inputs, *args, **kwargs)
            loss = found[0] if isinstance(found, tuple) else found
            scores = scorer.score(
                loss, index, n_units=int(generated.sum()), norms=self.form == "cosine",
                group=dist.group.WORLD if several else None,
            )  # fmt: skip
            self.decisions = self.policy.decide_many(scores.contributions(self.form))
            scorer.reject([unit for unit, one in enumerate(self.decisions) if not one.trains])
        self.policy.step()
        return found
