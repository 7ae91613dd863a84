"""The gradient cache: a running average of real-data gradients, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from ._contribution import contribution, cosine
from ._distributed import agreed, average, averaged_copies, unite
from ._layout import check_whole
from ._sketch import CountSketch
from ._step_model import StepModel
from ._types import CacheSums, Implementation, TensorMetric
from .errors import (
    GradientMismatchError,
    NonFiniteGradientError,
    ReboundParameterError,
    StateMismatchError,
)

Gradients = Mapping[str, Tensor | None]
Rows = Tensor | Sequence[int]

_STATE_VERSION = 1
_CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# bfloat16 rounds to 2⁻⁸ of a value. What an update adds, (1 - decay)·(g - c), is lost where it is
# less, so that an entry may stand still while it is 2⁻⁸ / (1 - decay) of its size away from the
# average: 4 % at 0.9, 39 % at 0.99, and any distance in a mean.
_LARGEST_BF16_DECAY = 0.9


class GradientCache:
    """A running average c of reference gradients, and how candidate gradients agree with it.

    One tensor per parameter, never concatenated. Update: c ← decay·c + (1 - decay)·g, so `decay`
    weighs the *old* cache; it starts at zero. A parameter without gradient counts as zeros, and no
    zeros are allocated. Memory: one copy of the cached parameters in `dtype`.

    Args:
        named_parameters: `model.named_parameters()`. Frozen and empty ones are left out.
        decay: Weight of the old cache, in [0, 1). The memory halves every `half_life` updates.
        mode: `"decay"`, or `"mean"` for the plain mean over all updates (`decay` is then unused).
        dtype: float32, bfloat16 or float64; None keeps float64 parameters in float64 and everything
            else in float32. bfloat16 takes a `decay` of at most 0.9 and no mean: a longer memory
            adds too little in an update to show in 8 bits.
        exclude: Patterns (`fnmatch`) of parameter names to leave out; each must match something.
        rowwise: Patterns of class-indexed parameters, whose rows (first axis) are updated only when
            `update` names them: the memory of a rare class is not washed out by frequent ones.
        bias_correction: Divide by 1 - decayᵗ, so that early caches are not small; changes dot
            products, not cosines. Kept row by row where `rowwise` applies.
        check_finite: Look for NaN and Inf in reference gradients before the cache is touched; costs
            one more read of them. Without it a bad gradient stays in the cache for good, and every
            later contribution is NaN.
        impl: Implementation of the passes over memory, as in `bsgal_score.ops`.

    Raises:
        ValueError: If an option is out of range, a pattern matches nothing, or nothing is left.
        ShardedParameterError: If a parameter is a DTensor, as under FSDP2.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        decay: float,
        mode: Literal["decay", "mean"] = "decay",
        dtype: torch.dtype | None = None,
        exclude: Sequence[str] = (),
        rowwise: Sequence[str] | None = None,
        bias_correction: bool = False,
        check_finite: bool = True,
        impl: Implementation = "auto",
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1), got {decay}")
        if mode not in ("decay", "mean"):
            raise ValueError(f"`mode` must be 'decay' or 'mean', got {mode!r}")
        if dtype is not None and dtype not in _CACHE_DTYPES:
            raise ValueError(f"`dtype` must be one of {_CACHE_DTYPES}, got {dtype}")
        if dtype == torch.bfloat16 and (mode == "mean" or decay > _LARGEST_BF16_DECAY):
            raise ValueError(
                f"a bfloat16 cache needs mode='decay' with a `decay` of at most "
                f"{_LARGEST_BF16_DECAY}, got mode={mode!r} and decay={decay}: its updates would be "
                "rounded away and the cache stand still; use dtype=torch.float32"
            )
        self.decay = float(decay)
        self.mode = mode
        self.bias_correction = bias_correction
        self.check_finite = check_finite
        self.impl: Implementation = impl
        self.n_updates = 0

        parameters = dict(named_parameters)
        left_out = _matching("exclude", exclude, parameters)
        self._parameters = {
            name: p
            for name, p in parameters.items()
            if p.requires_grad and p.numel() > 0 and name not in left_out
        }
        if not self._parameters:
            raise ValueError(
                f"no parameter to cache: {len(parameters)} were given, {len(left_out)} of them "
                "excluded, and the rest has requires_grad=False"
            )
        for name, parameter in self._parameters.items():
            check_whole(name, parameter)
        self._known_names = frozenset(parameters)
        by_row = _matching("rowwise", rowwise or (), self._parameters)
        for name in by_row:
            if self._parameters[name].dim() == 0:
                raise ValueError(f"`rowwise` parameter {name!r} is a scalar and has no rows")
        self._tensors = {
            name: _zeros(p, dtype, contiguous=name in by_row)
            for name, p in self._parameters.items()
        }
        self._row_updates = {
            name: torch.zeros(p.shape[0], dtype=torch.int64, device=p.device)
            for name, p in self._parameters.items()
            if name in by_row
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the cached parameters, in order."""
        return tuple(self._tensors)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Name to parameter, as they were when the cache was made."""
        return MappingProxyType(self._parameters)

    @property
    def half_life(self) -> float:
        """Number of updates after which a gradient's weight has halved; infinite in mode "mean"."""
        if self.mode == "mean":
            return math.inf
        return math.log(0.5) / math.log(self.decay) if self.decay > 0 else 0.0

    def __getitem__(self, name: str) -> Tensor:
        """Return the cached tensor of one parameter (the cache's own memory: do not change it)."""
        return self._tensors[name]

    def update(
        self,
        gradients: Gradients,
        rows: Rows | Mapping[str, Rows] | None = None,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Blend reference gradients into the cache.

        Args:
            gradients: Parameter name to gradient, in the parameter's shape, any floating dtype.
                None or absent counts as zeros. Names of excluded or frozen parameters are ignored.
            rows: Class indices present in the reference batch, for all `rowwise` tensors, or by
                name; None means all. Rows of absent classes neither decay nor take anything in.
            group: Processes that share the cache: all of them have to call, and all end up with
                the cache of the mean of their gradients and the union of their `rows`, as one
                process would that had seen everything. `exchanged_bytes` are reduced.

        Raises:
            GradientMismatchError: If a name is unknown or a gradient does not fit its parameter, in
                any process of the group; no cache is changed, as for all errors.
            NonFiniteGradientError: If a gradient holds NaN or Inf, likewise.
            OtherProcessError: If another process of the group raises something else.
        """
        with agreed(group):
            reference, present = self._checked(gradients, rows)
        if group is not None and self._row_updates:
            present = {
                name: unite(own, len(self._row_updates[name]), group)
                for name, own in present.items()
            }
            reference = averaged_copies(reference, self._tensors.values(), group)
        self._blend(reference, present)
        if group is not None and not self._row_updates:
            # The update is linear, so that the mean of the caches is the cache of the mean.
            average(self._tensors.values(), group)

    @property
    def exchanged_bytes(self) -> int:
        """Bytes that each process hands to the network in one `update` with a group.

        Those of the cache, and 8 to agree that no process raises. With `rowwise` tensors those of
        the gradients, in float32 at least, and one for each row. `all_reduce` exchanges the cache
        alone.
        """
        if not self._row_updates:
            return 8 + sum(t.numel() * t.element_size() for t in self._tensors.values())
        wide = [
            torch.promote_types(t.dtype, torch.float32).itemsize for t in self._tensors.values()
        ]
        n_bytes = sum(t.numel() * w for t, w in zip(self._tensors.values(), wide, strict=True))
        return 8 + n_bytes + sum(len(updates) for updates in self._row_updates.values())

    def dot(self, gradients: Gradients) -> float:
        """Return ⟨c, k⟩: by how much a step along -k lowers L_ref, per unit learning rate.

        Raises:
            GradientMismatchError: As `update`.
        """
        return float(self._sums(self._in_order(gradients)).dot)

    def norm(self) -> float:
        """Return the Euclidean norm ‖c‖ of the whole cache."""
        return math.sqrt(float(self._sums(None).cache_sqnorm))

    def cosine(self, gradients: Gradients) -> float | None:
        """Return ⟨c, k⟩ / (‖c‖‖k‖) in [-1, 1].

        None if k or c is zero: no evidence. NaN if a sum is not finite.

        Raises:
            GradientMismatchError: As `update`.
        """
        return _contribution(self._sums(self._in_order(gradients)), "cosine")

    def update_and_score(
        self,
        reference_gradients: Gradients,
        candidate_gradients: Gradients,
        form: Literal["cosine", "dot", "step"] = "cosine",
        *,
        step: StepModel | None = None,
        rows: Rows | Mapping[str, Rows] | None = None,
    ) -> float | None:
        """Update the cache, then score the candidate against it, in one pass over memory.

        Args:
            reference_gradients: As in `update`.
            candidate_gradients: Gradients of the unit to be judged, likewise.
            form: `"cosine"`, `"dot"` for ⟨c, k⟩, or `"step"` for the predicted drop of the
                reference loss that is due to the candidate in the optimizer's next step.
            step: For `form="step"`, a model of that step.
            rows: As in `update`.

        Returns:
            The contribution; None if the cache or the candidate is zero (no evidence), NaN if a
            sum is not finite.

        Raises:
            GradientMismatchError, NonFiniteGradientError: As `update`.
        """
        if form not in ("cosine", "dot", "step"):
            raise ValueError(f"`form` must be 'cosine', 'dot' or 'step', got {form!r}")
        if (form == "step") != (step is not None):
            raise ValueError("`step` must be given with form='step', and only then")
        reference, present = self._checked(reference_gradients, rows)
        sums = self._blend(
            reference,
            present,
            candidate=self._in_order(candidate_gradients),
            metric=None if step is None else step.metric(self._parameters, candidate_gradients),
        )
        if step is not None and not step.is_metric_only:
            given = {
                name: candidate
                for name in self.names
                if (candidate := candidate_gradients.get(name)) is not None
            }
            effect = step.effect(step.reference(self), given, self._parameters)
            sums = sums._replace(dot=torch.tensor(effect, dtype=torch.float64))
        return _contribution(sums, form)

    def update_and_sketch(
        self,
        gradients: Gradients,
        sketcher: CountSketch,
        rows: Rows | Mapping[str, Rows] | None = None,
    ) -> Tensor:
        """Update the cache, and return its sketch for later queries of a `SketchStore`.

        One pass over memory if the sketch is laid out like the cache (the same parameters, row by
        row in memory, no `rowwise` ones); else an update, then a sketch.

        Args:
            gradients: As in `update`.
            sketcher: A sketch of parameters that include the cached ones.
            rows: As in `update`.

        Returns:
            The sketch of the new cache, float32 (sketcher.width,).

        Raises:
            GradientMismatchError: As `update`, or if the sketch lacks a cached parameter.
            NonFiniteGradientError: As `update`.
        """
        sketcher.check_layout({name: tensor.shape for name, tensor in self._tensors.items()})
        tensors = list(self._tensors.values())
        fusable = (
            not self._row_updates
            and list(self._tensors) == list(sketcher.shapes)
            and all(tensor.is_contiguous() for tensor in tensors)
            and len({tensor.device for tensor in tensors}) == 1
        )
        if not fusable:
            self.update(gradients, rows)
            return sketcher.sketch(self._tensors)
        reference, _ = self._checked(gradients, rows)
        found = ops.cache_update_sketch(
            tensors,
            reference,
            decay=float(self._old_weight(torch.tensor(self.n_updates))),
            width=sketcher.width,
            seed=sketcher.seed,
            impl=self.impl,
        )
        self.n_updates += 1
        return found.float()

    def all_reduce(self, group: dist.ProcessGroup) -> None:
        """Replace the cache by its mean over processes, after each has updated its own.

        The update is linear, so the result is the cache of the mean reference gradient: n processes
        with N samples each equal one with n·N. As many bytes as the cache holds are reduced.

        Args:
            group: The processes, for example `torch.distributed.group.WORLD`.

        Raises:
            ValueError: If there are row-wise tensors: processes saw different classes, so that
                caches cannot be averaged afterwards; `update` with a group does it before.
        """
        if self._row_updates:
            raise ValueError(
                "a cache with `rowwise` tensors cannot be averaged, since processes saw different "
                "classes; pass `group` to `update` instead"
            )
        average(self._tensors.values(), group)

    def check_parameters(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Check that every cached name is still bound to the parameter the cache was made from.

        Raises:
            ReboundParameterError: Naming the first parameter that is missing or another object.
        """
        now = dict(named_parameters)
        for name, parameter in self._parameters.items():
            if now.get(name) is not parameter:
                problem = "is bound to another tensor" if name in now else "is missing"
                raise ReboundParameterError(
                    f"parameter {name!r} {problem} since the cache was made; call "
                    "cache.rebind(model.named_parameters())"
                )

    def rebind(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Go on with the parameters of a copy of the model, name by name, on their devices.

        Args:
            named_parameters: Of the copy; frozen ones are taken as they are.

        Raises:
            ReboundParameterError: If a cached parameter is missing or has another shape; nothing
                is changed.
            ShardedParameterError: If one is a DTensor, likewise.
        """
        now = dict(named_parameters)
        for name, tensor in self._tensors.items():
            parameter = now.get(name)
            if parameter is None or parameter.shape != tensor.shape:
                found = "is missing" if parameter is None else f"has {tuple(parameter.shape)}"
                raise ReboundParameterError(
                    f"parameter {name!r}, cached with shape {tuple(tensor.shape)}, {found} in the "
                    "copy; pass the named_parameters() of the model as when the cache was made"
                )
            check_whole(name, parameter)
        self._parameters = {name: now[name] for name in self._tensors}
        for memory in (self._tensors, self._row_updates):
            for name in memory:
                memory[name] = memory[name].to(self._parameters[name].device)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue: settings, counters and the cached tensors.

        The tensors are the cache's own memory, as in `torch.nn.Module.state_dict`.
        """
        return {
            "version": _STATE_VERSION,
            "decay": self.decay,
            "mode": self.mode,
            "bias_correction": self.bias_correction,
            "n_updates": self.n_updates,
            "tensors": dict(self._tensors),
            "row_updates": dict(self._row_updates),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; nothing is changed unless all of it fits.

        Raises:
            StateMismatchError: Naming the first setting or tensor that differs.
        """
        expected = self.state_dict()
        for key in ("version", "decay", "mode", "bias_correction"):
            if state.get(key) != expected[key]:
                raise StateMismatchError(
                    f"the saved cache has {key}={state.get(key)!r}, this one {expected[key]!r}"
                )
        for group in ("tensors", "row_updates"):
            _check_same_tensors(group, state[group], expected[group])
        self.n_updates = int(state["n_updates"])
        for group in ("tensors", "row_updates"):
            for name, tensor in expected[group].items():
                tensor.copy_(state[group][name])

    def _in_order(self, gradients: Gradients) -> list[Tensor | None]:
        """Check gradients against the cache and list them in its order."""
        for name in gradients:
            if name not in self._known_names:
                raise GradientMismatchError(
                    f"gradient {name!r} belongs to no parameter this cache was made with; "
                    f"its names begin with {list(self._tensors)[:3]}"
                )
        ordered = []
        for name, tensor in self._tensors.items():
            gradient = gradients.get(name)
            if gradient is not None:
                _check_gradient(name, gradient, tensor)
                gradient = gradient.detach()
            ordered.append(gradient)
        return ordered

    def _checked(
        self, gradients: Gradients, rows: Rows | Mapping[str, Rows] | None
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Check a reference gradient and its rows; return them in order and by tensor."""
        reference = self._in_order(gradients)
        present = self._present_rows(rows)
        if self.check_finite:
            self._raise_on_nonfinite(reference)
        return reference, present

    def _sums(self, candidate: list[Tensor | None] | None) -> CacheSums:
        return ops.cache_update_dot(list(self._tensors.values()), None, candidate, impl=self.impl)

    def _blend(
        self,
        reference: list[Tensor | None],
        present: Mapping[str, Tensor],
        *,
        candidate: list[Tensor | None] | None = None,
        metric: list[TensorMetric] | None = None,
    ) -> CacheSums:
        """Update the cache with what `_checked` returned, and score a candidate."""
        sums = ops.cache_update_dot(
            list(self._tensors.values()),
            reference,
            candidate,
            decay=float(self._old_weight(torch.tensor(self.n_updates))),
            row_decay=self._row_decay(present) if self._row_updates else None,
            metric=metric,
            impl=self.impl,
        )
        self.n_updates += 1
        for name, updates in self._row_updates.items():
            updates[present[name]] += 1
        return sums

    def _old_weight(self, n_updates: Tensor) -> Tensor:
        """Return the weight of the old cache in an update that follows `n_updates` others.

        The average with bias correction is itself a running average: with n = `n_updates`,
        ĉ ← w·ĉ + (1 - w)·g for w = decay·(1 - decayⁿ) / (1 - decayⁿ⁺¹). It holds the corrected
        cache at all times, and tends to the mean's w = n / (n + 1) as decay tends to 1.
        """
        n = n_updates.double()
        if self.mode == "mean":
            return n / (n + 1)
        if self.bias_correction:
            return self.decay * (1 - self.decay**n) / (1 - self.decay ** (n + 1))
        return torch.full_like(n, self.decay)

    def _row_decay(self, present: Mapping[str, Tensor]) -> list[Tensor | None]:
        """Give each row-wise tensor its weights of old rows: 1 where the class is absent."""
        weights: list[Tensor | None] = []
        for name in self._tensors:
            if name not in self._row_updates:
                weights.append(None)
                continue
            updates = self._row_updates[name]
            weight = torch.ones(len(updates), dtype=torch.float64, device=updates.device)
            weight[present[name]] = self._old_weight(updates[present[name]])
            weights.append(weight)
        return weights

    def _present_rows(self, rows: Rows | Mapping[str, Rows] | None) -> dict[str, Tensor]:
        """Return the distinct rows to update, for each row-wise tensor."""
        if rows is not None and not self._row_updates:
            raise ValueError("`rows` needs a cache with `rowwise` patterns; this one has none")
        present = {}
        for name, updates in self._row_updates.items():
            n_rows = len(updates)
            chosen = rows.get(name) if isinstance(rows, Mapping) else rows
            if chosen is None:
                present[name] = torch.arange(n_rows, device=updates.device)
                continue
            indices = torch.as_tensor(chosen, device=updates.device).long().reshape(-1)
            indices = torch.unique(indices)
            if len(indices) and not 0 <= int(indices[0]) <= int(indices[-1]) < n_rows:
                raise ValueError(
                    f"`rows` must lie in [0, {n_rows}) for {name!r}, got "
                    f"{int(indices[0])} to {int(indices[-1])}"
                )
            present[name] = indices
        return present

    def _raise_on_nonfinite(self, reference: list[Tensor | None]) -> None:
        # A sum is the cheapest read of all elements; it is not finite if one of them is not.
        given = [(n, g) for n, g in zip(self._tensors, reference, strict=True) if g is not None]
        if not given:
            return
        device = given[0][1].device
        sums = torch.stack(
            [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)).to(device) for _, g in given]
        )
        if bool(torch.isfinite(sums).all()):
            return
        for name, gradient in given:
            n_bad = int((~torch.isfinite(gradient)).sum())
            if n_bad:
                raise NonFiniteGradientError(
                    f"the reference gradient of {name!r} holds {n_bad} NaN or Inf of "
                    f"{gradient.numel()} elements; the cache was not changed; skip this batch, "
                    "or unscale the gradients if a loss scaler was used"
                )


def _matching(option: str, patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    if isinstance(patterns, str):
        raise TypeError(f"`{option}` must be a sequence of patterns, got the string {patterns!r}")
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise ValueError(f"`{option}` pattern {pattern!r} matches no parameter name")
        found |= matches
    return found


def _zeros(parameter: Tensor, dtype: torch.dtype | None, *, contiguous: bool) -> Tensor:
    if dtype is None:
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    # Gradients usually come in their parameter's memory layout; the cache follows it.
    layout = torch.contiguous_format if contiguous else torch.preserve_format
    return torch.zeros_like(parameter, dtype=dtype, memory_format=layout, requires_grad=False)


def _check_gradient(name: str, gradient: Tensor, tensor: Tensor) -> None:
    if not isinstance(gradient, Tensor):
        raise TypeError(f"the gradient of {name!r} must be a tensor, got {type(gradient).__name__}")
    if gradient.layout != torch.strided:
        raise GradientMismatchError(
            f"the gradient of {name!r} is {gradient.layout}; pass gradient.to_dense()"
        )
    if not gradient.is_floating_point():
        raise GradientMismatchError(f"the gradient of {name!r} has dtype {gradient.dtype}")
    if gradient.shape != tensor.shape or gradient.device != tensor.device:
        raise GradientMismatchError(
            f"the gradient of {name!r} must have shape {tuple(tensor.shape)} on {tensor.device}, "
            f"got {tuple(gradient.shape)} on {gradient.device}"
        )


def _check_same_tensors(
    group: str, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    for name, tensor in expected.items():
        if name not in saved:
            raise StateMismatchError(f"the saved cache has no {group} entry {name!r}")
        other = saved[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise StateMismatchError(
                f"{group} entry {name!r} has shape {tuple(other.shape)} and {other.dtype} in the "
                f"saved cache, {tuple(tensor.shape)} and {tensor.dtype} in this one"
            )
    for name in saved:
        if name not in expected:
            raise StateMismatchError(f"the saved cache has a {group} entry {name!r}, this one not")


def _contribution(sums: CacheSums, form: Literal["cosine", "dot", "step"]) -> float | None:
    dot, cache_sqnorm, candidate_sqnorm = torch.stack(list(sums)).tolist()
    sides = {"cache_sqnorm": cache_sqnorm, "candidate_sqnorm": candidate_sqnorm}
    score = cosine(dot=dot, **sides) if form == "cosine" else dot
    return contribution(score, dot=dot, **sides)
