"""Compare units' gradients, as ghost scoring has them, with autograd's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ._layer_scores import gradients
from ._pass_scores import ScoredPass
from .errors import WrongUnitError


def verify(
    scored: ScoredPass, unit_losses: Mapping[int, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """Raise unless the gradients of some units' own losses are those that were scored.

    Args:
        scored: The pass.
        unit_losses: Unit to the part of the pass's loss that belongs to it.
        parameters: Those of the cache, by name.

    Raises:
        WrongUnitError: Naming the parameter, of all units, that is furthest off.
    """
    scored.units(list(unit_losses))
    worst = (0.0, "", -1, 0.0, 0.0)
    for unit, loss in unit_losses.items():
        ghost = gradients(scored.reached, unit)
        chosen = [parameters[name] for name in scored.names]
        exact = torch.autograd.grad(loss, chosen, retain_graph=True, allow_unused=True)
        for name, found in zip(scored.names, exact, strict=True):
            zero = torch.zeros((), dtype=torch.float64)
            mine = ghost[name].double() if name in ghost else zero
            its = zero if found is None else found.double() / scored.loss_scale
            off, size = float((mine - its).norm()), float(mine.norm() + its.norm())
            # Half of the digits, for what rounding may take.
            excess = off / (size * math.sqrt(torch.finfo(parameters[name].dtype).eps) or 1.0)
            if not excess <= worst[0]:
                worst = (excess, name, unit, float(mine.norm()), float(its.norm()))
    if not worst[0] <= 1.0:
        _, name, unit, mine_norm, its_norm = worst
        raise WrongUnitError(
            f"unit {unit} has a gradient of norm {mine_norm:.4g} on {name!r} by its rows, and of "
            f"norm {its_norm:.4g} by autograd on its own loss, and they differ: either "
            "`unit_index` names other rows in that layer (see `unit_axis`), or rows influence one "
            "another there (batch statistics, attention between units, a normalisation of the "
            "loss), or the unit's loss is not its part of the loss that was scored"
        )
