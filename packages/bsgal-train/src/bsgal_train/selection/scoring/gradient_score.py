"""Scores of one candidate gradient against a cache."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from bsgal_score import GradientCache, StepModel
from bsgal_train.processes import group as processes
from bsgal_train.recipe import ScoreForm

__all__ = ["contribution", "step_model"]


def step_model(optimizer: Optimizer, cache: GradientCache) -> StepModel | None:
    """Return a model of the optimizer's next step; None before it has moved all cached parameters.

    A process's loss counts for its share of the mean over processes.
    """
    if any(not optimizer.state.get(parameter) for parameter in cache.parameters.values()):
        return None
    return StepModel(optimizer, unit_weight=1 / processes.n_processes())


def contribution(
    cache: GradientCache,
    candidate: Mapping[str, Tensor | None],
    form: ScoreForm,
    optimizer: Optimizer,
) -> float | None:
    """Return the score of a candidate whose gradient is the mean over processes.

    Returns:
        The form's number; None if cache or candidate is zero, or if form is `step` and the
        optimizer has not moved yet; NaN if a sum is not finite.
    """
    if form == "cosine":
        return cache.cosine(candidate)
    if form == "dot":
        value = cache.dot(candidate)
        return None if value == 0 else value
    if any(not optimizer.state.get(parameter) for parameter in cache.parameters.values()):
        return None
    cached = {name: cache[name] for name in cache.names}
    directions = StepModel(optimizer).directions(cached, cache.parameters)
    total = 0.0
    for name, direction in directions.items():
        gradient = candidate.get(name)
        if gradient is not None:
            total += float(torch.sum(direction * gradient, dtype=torch.float64))
    return total if total != 0 or math.isnan(total) else None
