"""The exact effect of a candidate: what every score is an estimate of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._restore import restored

Loss = Callable[[], Tensor]


def loss_difference(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    reference_loss: Loss,
    candidate_loss: Loss,
    batch_loss: Loss | None = None,
    before_step: Callable[[], None] | None = None,
    generators: Sequence[torch.Generator] = (),
) -> float:
    """Return by how much one real optimizer step with the candidate lowers the reference loss.

    Alone (no `batch_loss`): L_ref now, minus L_ref after a step on the candidate. In the batch:
    L_ref after a step on the batch without the candidate, minus L_ref after a step on both.
    Positive means that the candidate helps, as for every score. Every loss is computed from the
    same random state, so that drop-out and sampling do not blur the difference. Parameters,
    gradients, buffers, modes, optimizer and random state are afterwards bit for bit what they were,
    also if a loss raises.

    Costs two evaluations of the reference loss and one or two training steps, and a copy of the
    model and the optimizer's state.

    Args:
        model: The model whose buffers are restored; the losses use it.
        optimizer: Takes the steps, as it would in training.
        reference_loss: Returns L_ref at the current weights.
        candidate_loss: Returns the candidate's share of the training loss, normalised as there.
        batch_loss: Returns the rest of the training loss.
        before_step: Called between backward pass and step, for example to clip gradients.
        generators: Generators that the losses draw from, besides the global ones of torch, NumPy
            and Python.
    """
    with restored(optimizer, model, generators) as snapshot:

        def reference() -> float:
            snapshot.restore_random_state()
            with torch.no_grad():
                return float(reference_loss())

        def after_step(*losses: Loss) -> float:
            snapshot.restore()
            optimizer.zero_grad(set_to_none=True)
            for loss in losses:
                snapshot.restore_random_state()
                torch.autograd.backward(loss())
            if before_step is not None:
                before_step()
            optimizer.step()
            return reference()

        if batch_loss is None:
            return reference() - after_step(candidate_loss)
        return after_step(batch_loss) - after_step(batch_loss, candidate_loss)
