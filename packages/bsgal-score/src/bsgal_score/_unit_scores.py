"""The scores of the units of one forward pass, and what of them a policy may decide on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._contribution import contribution

Form = Literal["cosine", "dot", "step"]


class Sides(NamedTuple):
    """Squared norms of what is multiplied: a score with a side of zero is no evidence."""

    cache_sqnorm: float
    """⟨c, c⟩ over the scored parameters."""
    unit_sqnorms: Tensor
    """⟨g_i, g_i⟩, float64 (n_units,). Without norms, 1 where a gradient reached the unit's rows."""


@dataclass(frozen=True)
class UnitScores:
    """Scores of the units of one forward pass; tensors are (n_units,), float64."""

    dot: Tensor
    """⟨c, g_i⟩ with the unit's gradient g_i: drop of the reference loss per unit learning rate."""
    norm: Tensor | None
    """‖g_i‖; None if norms were not asked for."""
    cosine: Tensor | None
    """⟨c, g_i⟩ / (‖c‖‖g_i‖), both over the scored parameters; NaN where c or g_i is zero."""
    rows: Tensor
    """Number of rows of each unit in the layer that saw most of them, int64."""
    step: Tensor | None
    """Drop of the reference loss predicted for the optimizer's next step; None without `step`."""
    coverage: float
    """Share of the cache's elements whose gradients entered the scores."""
    sides: Mapping[Form, Sides] = field(default_factory=dict)
    """For each form what decides about evidence; under "step" only parameters that it moves."""

    def contributions(self, form: Form = "cosine") -> list[float | None]:
        """List what a policy's `decide` takes: a number, None without evidence, NaN if not finite.

        There is no evidence where a unit has no rows, or its gradient or the cache is zero, and in
        the form "step" where the optimizer does not move what they reach (a learning rate of 0).
        """
        by_form = {"cosine": self.cosine, "dot": self.dot, "step": self.step}
        if form not in by_form:
            raise ValueError(f"`form` must be one of {list(by_form)}, got {form!r}")
        scores = by_form[form]
        if scores is None:
            needed = "norms=True" if form == "cosine" else "a `step` model"
            raise ValueError(f"form={form!r} needs scores made with {needed}")
        norm = torch.ones_like(self.dot) if self.norm is None else self.norm
        cache_sqnorm, unit_sqnorms = self.sides.get(form, Sides(1.0, norm.square()))
        unit_sqnorms = torch.where(self.rows == 0, torch.zeros_like(self.dot), unit_sqnorms)
        return [
            contribution(score, dot=dot, cache_sqnorm=cache_sqnorm, candidate_sqnorm=unit_sqnorm)
            for score, dot, unit_sqnorm in zip(
                scores.tolist(), self.dot.tolist(), unit_sqnorms.tolist(), strict=True
            )
        ]
