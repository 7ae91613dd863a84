"""Every estimator of a candidate's effect, and the exact effect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bsgal_score import CountSketch, GhostScorer, GradientCache, StepModel, loss_difference

from .setting import Gradients, Setting

CURVATURES = ("none", "scalar", "diagonal", "kfac")
SKETCH_WIDTHS = (256, 1024, 4096, 16384)


def true_effects(setting: Setting, candidates: Sequence[Gradients], *, alone: bool) -> list[float]:
    """Return the exact drop of the reference loss for each candidate, by `loss_difference`."""

    def with_gradient(gradients: Gradients) -> Tensor:
        # Linear in the weights, with just these gradients: the real losses are computed once.
        return torch.stack(
            [
                (parameter * gradients[name]).sum()
                for name, parameter in setting.model.named_parameters()
                if gradients.get(name) is not None
            ]
        ).sum()

    return [
        loss_difference(
            setting.model,
            setting.optimizer,
            reference_loss=setting.reference_loss,
            candidate_loss=lambda candidate=candidate: with_gradient(candidate),
            batch_loss=None if alone else lambda: with_gradient(setting.rest),
        )
        for candidate in candidates
    ]


def estimates(
    setting: Setting, unit: str, *, alone: bool, everything: bool
) -> dict[str, list[float]]:
    """Return every estimator's value for each candidate.

    Args:
        setting: The model.
        unit: Kind of the candidates.
        alone: Without the rest of the batch.
        everything: Also sketches, other caches and head-only scores.
    """
    candidates = setting.candidates[unit]
    with _batch_gradients(setting, None if alone else setting.rest):
        found = _forms(setting, candidates, alone=alone)
        if everything:
            found |= _caches(setting, candidates)
            found |= _sketches(setting, candidates)
        if unit in setting.ghost_passes:
            found |= _head_only(setting, unit, alone=alone)
    return found


def step_models(setting: Setting, *, alone: bool) -> Iterator[tuple[str, StepModel]]:
    """Yield all step models with their names."""
    is_adam = not isinstance(setting.optimizer, torch.optim.SGD)
    for displacement in ("linear", "exact") if is_adam else ("linear",):
        for point in ("now",) if alone else ("now", "look_ahead"):
            for curvature in CURVATURES:
                parts = [
                    "step",
                    "exact" if displacement == "exact" else "",
                    "look_ahead" if point == "look_ahead" else "",
                    curvature if curvature != "none" else "",
                ]
                yield (
                    "_".join(part for part in parts if part),
                    setting.step_model(
                        displacement=displacement, reference_at=point, curvature=curvature
                    ),
                )


def _forms(
    setting: Setting, candidates: Sequence[Gradients], *, alone: bool
) -> dict[str, list[float]]:
    cache = _cache(setting)
    found = {
        "dot": [cache.dot(candidate) for candidate in candidates],
        "cosine": [_number(cache.cosine(candidate)) for candidate in candidates],
    }
    ahead = None if alone else _cache(setting, reference_at="look_ahead")
    for name, step in step_models(setting, alone=alone):
        chosen = ahead if step.reference_at == "look_ahead" else cache
        assert chosen is not None
        found[name] = _effects(step, chosen, candidates)
    return found


def _caches(setting: Setting, candidates: Sequence[Gradients]) -> dict[str, list[float]]:
    found = {}
    bf16 = _cache(setting, dtype=torch.bfloat16)
    for name, cache in {"bf16": bf16, **setting.memory.caches}.items():
        found[f"dot_{name}"] = [cache.dot(candidate) for candidate in candidates]
        found[f"cosine_{name}"] = [_number(cache.cosine(candidate)) for candidate in candidates]
        found[f"step_{name}"] = _effects(StepModel(setting.optimizer), cache, candidates)
    for name, (cache, step) in setting.memory.extrapolated.items():
        found[f"step_extrapolated_{name}"] = _effects(step, cache, candidates)
    return found


def _sketches(setting: Setting, candidates: Sequence[Gradients]) -> dict[str, list[float]]:
    cache = _cache(setting)
    cached = {name: cache[name] for name in cache.names}
    step = StepModel(setting.optimizer)
    given = [{name: k for name, k in one.items() if k is not None} for one in candidates]
    found = {}
    for width in SKETCH_WIDTHS:
        sketcher = CountSketch(setting.model.named_parameters(), width=width, seed=0)
        small = [sketcher.sketch(candidate) for candidate in candidates]
        found[f"dot_sketch_{width}"] = [float(sketcher.sketch(cached) @ one) for one in small]
        # The metric on the cache's side alone, and half of it on both sides.
        moved = sketcher.sketch(step.directions(cached, cache.parameters))
        found[f"step_sketch_{width}_one_side"] = [float(moved @ one) for one in small]
        half = sketcher.sketch(step.directions(cached, cache.parameters, power=0.5))
        found[f"step_sketch_{width}"] = [
            float(
                half
                @ sketcher.sketch(
                    step.directions(one, {name: cache.parameters[name] for name in one}, power=0.5)
                )
            )
            for one in given
        ]
    return found


def _head_only(setting: Setting, unit: str, *, alone: bool) -> dict[str, list[float]]:
    now = _cache(setting, exclude=setting.head_excludes)
    cases = [
        ("step", now, setting.step_model()),
        ("step_exact_kfac", now, setting.step_model(displacement="exact", curvature="kfac")),
    ]
    if not alone:
        ahead = _cache(setting, reference_at="look_ahead", exclude=setting.head_excludes)
        cases.append(("step_look_ahead", ahead, setting.step_model(reference_at="look_ahead")))
    found: dict[str, list[float]] = {}
    for name, cache, step in cases:
        scorer = GhostScorer(setting.head_modules, cache)
        for run in setting.ghost_passes[unit]:
            with scorer:
                loss, index = run()
                scores = scorer.score(loss, index, n_units=1, step=step, update_cache=False)
            found.setdefault(f"head_{name}", []).append(_number(scores.contributions("step")[0]))
            if name == "step":
                for form in ("dot", "cosine"):
                    value = _number(scores.contributions(form)[0])
                    found.setdefault(f"head_{form}", []).append(value)
    return found


def _cache(setting: Setting, *, reference_at: str = "now", **options: Any) -> GradientCache:
    """Return a cache that holds the reference gradient of one point."""
    cache = GradientCache(setting.model.named_parameters(), decay=0.0, **options)
    step = setting.step_model(reference_at=reference_at)
    cache.update(step.reference_gradients(setting.model, setting.reference_loss))
    return cache


def _effects(
    step: StepModel, cache: GradientCache, candidates: Sequence[Mapping[str, Tensor | None]]
) -> list[float]:
    reference = step.reference(cache)
    return [
        step.effect(
            reference,
            {name: k for name, k in candidate.items() if k is not None},
            cache.parameters,
        )
        for candidate in candidates
    ]


def _number(contribution: float | None) -> float:
    return math.nan if contribution is None else contribution


@contextmanager
def _batch_gradients(setting: Setting, rest: Gradients | None) -> Iterator[None]:
    """Put the gradient of the rest of the batch into `.grad`, as a backward pass would."""
    parameters: dict[str, nn.Parameter] = dict(setting.model.named_parameters())
    for name, parameter in parameters.items():
        gradient = None if rest is None else rest.get(name)
        parameter.grad = None if gradient is None else gradient.clone()
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.grad = None
