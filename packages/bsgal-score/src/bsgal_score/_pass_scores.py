"""Put together the scores of a whole pass from those of its layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from ._cache import GradientCache
from ._contribution import cosine
from ._layer_scores import Reached, score_layer, step_effects
from ._step_model import StepModel
from ._unit_index import IndexedCall
from ._unit_scores import Form, Sides, UnitScores


@dataclass(frozen=True)
class ScoredPass:
    """A forward pass whose units have been told apart."""

    loss: Tensor
    loss_scale: float
    calls: Sequence[IndexedCall]
    """The recorded calls that are scored."""
    reached: Sequence[Reached]
    """Those of them that the loss depends on."""
    n_units: int
    names: tuple[str, ...]
    """The parameters that are scored."""

    def units(self, chosen: Sequence[int] | Tensor) -> Tensor:
        """Return units as int64 indices.

        Raises:
            ValueError: If one is none of the pass's.
        """
        units = torch.as_tensor(chosen, dtype=torch.int64).flatten().cpu()
        if len(units) and not 0 <= int(units.min()) <= int(units.max()) < self.n_units:
            raise ValueError(
                f"`units` must lie in [0, {self.n_units}), got {int(units.min())} to "
                f"{int(units.max())}"
            )
        return units


def score_pass(
    scored: ScoredPass,
    cache: GradientCache,
    *,
    norms: bool,
    step: StepModel | None,
    impl: ops.Implementation,
) -> UnitScores:
    """Score every unit against the cache; arguments as in `GhostScorer.score`."""
    names, n_units = scored.names, scored.n_units
    device = next(iter(cache.parameters.values())).device
    cached = {name: cache[name] for name in names}
    directions = [cached]
    moved: set[str] = set()
    if step is not None:
        parameters = {name: cache.parameters[name] for name in names}
        metric = zip(parameters, step.metric(parameters), strict=True)
        moved = {name for name, one in metric if one.scale != 0}
        reference = step.reference(cache)
        reference = {name: reference[name] for name in names}
        if step.is_linear:
            directions.append(step.directions(reference, parameters))
    dots = torch.zeros(len(directions), n_units, dtype=torch.float64)
    effects, sqnorm, moved_sqnorm = torch.zeros(3, n_units, dtype=torch.float64)
    layers: dict[frozenset[str], list[Reached]] = defaultdict(list)
    for hit in scored.reached:
        layers[frozenset(hit.call.names.values())].append(hit)
    for own, layer in layers.items():
        layer_dots, layer_sqnorm = score_layer(layer, directions, n_units, norms=norms, impl=impl)
        dots += layer_dots
        sqnorm += layer_sqnorm
        if not own.isdisjoint(moved):
            moved_sqnorm += layer_sqnorm
        if step is not None and not step.is_linear:
            effects += step_effects(layer, step, reference, parameters, n_units)
    sides: dict[Form, Sides] = {"dot": Sides(_sqnorm(cached, impl), sqnorm)}
    if norms:
        sides["cosine"] = sides["dot"]
    if step is not None:
        moving = {name: cached[name] for name in names if name in moved}
        sides["step"] = Sides(_sqnorm(moving, impl), moved_sqnorm)
    cosines = [
        cosine(dot=dot, cache_sqnorm=sides["dot"].cache_sqnorm, candidate_sqnorm=candidate)
        for dot, candidate in zip(dots[0].tolist(), sqnorm.tolist(), strict=True)
    ]
    rows = torch.zeros(n_units, dtype=torch.int64)
    for one in scored.calls:
        counted = one.index[one.index >= 0].cpu()
        rows = rows.maximum(torch.bincount(counted, minlength=n_units))
    n_scored = sum(cached[name].numel() for layer in layers for name in layer)
    return UnitScores(
        dot=dots[0].to(device),
        norm=sqnorm.sqrt().to(device) if norms else None,
        cosine=torch.tensor(cosines, dtype=torch.float64, device=device) if norms else None,
        rows=rows.to(device),
        step=None if step is None else (dots[1] if step.is_linear else effects).to(device),
        coverage=n_scored / sum(p.numel() for p in cache.parameters.values()),
        sides={form: Sides(one[0], one[1].to(device)) for form, one in sides.items()},
    )


def _sqnorm(tensors: Mapping[str, Tensor], impl: ops.Implementation) -> float:
    if not tensors:
        return 0.0
    sums = ops.cache_update_dot(list(tensors.values()), None, None, impl=impl)
    return float(sums.cache_sqnorm)
