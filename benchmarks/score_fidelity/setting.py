"""What a study needs to know of a trained model, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bsgal_score import GradientCache, StepModel
from bsgal_score._curvature import Curvature

Gradients = dict[str, Tensor | None]
GhostPass = Callable[[], tuple[Tensor, Any]]
"""Runs a forward pass with one unit in it; returns its loss and the unit index."""


@dataclass
class Memory:
    """Caches that were fed along the last training steps, a fresh reference batch each time."""

    caches: dict[str, GradientCache]
    extrapolated: dict[str, tuple[GradientCache, StepModel]]

    @staticmethod
    def of(model: nn.Module, optimizer: torch.optim.Optimizer, rowwise: Sequence[str]) -> Memory:
        """Make empty ones."""

        def cache(decay: float, **options: Any) -> GradientCache:
            return GradientCache(model.named_parameters(), decay=decay, **options)

        def ahead(decay: float) -> tuple[GradientCache, StepModel]:
            return cache(decay), StepModel(optimizer, reference_at="extrapolated")

        return Memory(
            caches={
                "decay_0": cache(0.0),
                "decay_0.1": cache(0.1),
                "decay_0.9": cache(0.9),
                "decay_0.99": cache(0.99),
                "decay_0.9_rowwise": cache(0.9, rowwise=list(rowwise)),
            },
            extrapolated={"fixed_batch": ahead(0.0), "decay_0.9": ahead(0.9)},
        )

    def feed(self, fresh: Gradients, classes: Tensor, fixed: Gradients | None) -> None:
        """Take in the gradient of a fresh batch with its classes, and that of the fixed batch."""
        for name, cache in self.caches.items():
            cache.update(fresh, rows=classes if "rowwise" in name else None)
        for name, (cache, step) in self.extrapolated.items():
            gradients = fixed if name == "fixed_batch" else fresh
            if gradients is not None:
                cache.update(gradients)
                step.reference(cache)


@dataclass
class Setting:
    """A trained model at one moment: a reference loss, the rest of a batch, and candidates."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    reference_loss: Callable[[], Tensor]
    rest: Gradients
    """Gradient of the batch without a candidate."""
    candidates: dict[str, list[Gradients]]
    """Kind of unit ("image", "instance", "batch") to every unit's gradient, as the batch takes it;
    "batch" units are whole batches."""
    head_modules: Sequence[nn.Module]
    head_excludes: Sequence[str]
    ghost_passes: dict[str, list[GhostPass]]
    memory: Memory
    quality: dict[str, float]
    """How good the model is."""

    @cached_property
    def curvatures(self) -> dict[str, Curvature]:
        """Return estimates of the curvature at the weights of now, by kind."""
        found = {}
        for kind in ("scalar", "diagonal", "kfac"):
            step = StepModel(self.optimizer, curvature=kind)
            step.reference_gradients(self.model, self.reference_loss)
            assert step.curvature is not None
            found[kind] = step.curvature
        return found

    def step_model(self, **options: Any) -> StepModel:
        """Make a step model that knows the curvature already."""
        step = StepModel(self.optimizer, **options)
        if step.curvature is not None:
            step.curvature = self.curvatures[step.curvature.kind]
        return step

    def gradients(self, loss: Tensor, *, retain_graph: bool = False) -> Gradients:
        """Return the gradient of a loss by name."""
        return gradients(self.model, loss, retain_graph=retain_graph)


def gradients(model: nn.Module, loss: Tensor, *, retain_graph: bool = False) -> Gradients:
    """Return the gradient of a loss by parameter name; None where it does not depend."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(
        loss, list(named.values()), allow_unused=True, retain_graph=retain_graph
    )
    return dict(zip(named, found, strict=True))


def total(many: Sequence[Mapping[str, Tensor | None]]) -> Gradients:
    """Return the sum of gradients."""
    found: Gradients = {}
    for one in many:
        for name, gradient in one.items():
            before = found.get(name)
            if before is None or gradient is None:
                found[name] = gradient if before is None else before
            else:
                found[name] = before + gradient
    return found
