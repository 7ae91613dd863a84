"""Score many units of one forward pass at once, without forming a gradient per unit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import ops
from ._cache import GradientCache, Rows
from ._contribution import cosine
from ._curvature import CallRows
from ._distributed import any_process
from ._layer_scores import Reached, gradients, score_layer, step_effects
from ._recorder import Call, Recorder, record_module
from ._step_model import StepModel
from ._unit_scores import Form, Sides, UnitScores
from .eager.ghost import compute_dtype
from .errors import (
    LiveBatchNormError,
    NonFiniteGradientError,
    ReboundParameterError,
    UnsupportedLayerError,
)

REFERENCE = -1
"""Unit index of rows that are no unit's but feed the cache: real data."""
IGNORED = -2
"""Unit index of rows that count nowhere."""

UnitIndex = Tensor | Mapping[str, Tensor | Sequence[Tensor]]

_SUPPORTED_MODULES = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Embedding,
    _BatchNorm,
)


class GhostScorer:
    """Record the layers of some modules in a forward pass, then score every unit in it.

    A unit is a set of rows (entries along the first axis) of the layers' inputs: the proposals of
    a pasted object, or an image. One backward pass through the recorded modules, never into the
    trunk below them, gives all output gradients; from these and the recorded inputs come every
    unit's dot product with the cache and its norm, and the reference rows' gradient for the cache.
    The rows must not influence one another inside the modules.

    Use it as a context manager around the forward pass, as often as wanted:

        with scorer:
            loss = ...
            scores = scorer.score(loss, unit_index)

    Args:
        modules: Modules whose parameters (those in the cache) are scored.
        cache: The gradient cache to score against and to feed.
        other_layers: What to do about a parameter in a layer other than Linear, convolutions,
            GroupNorm, LayerNorm, Embedding and frozen BatchNorm: `"error"`; `"skip"` it (then
            `coverage` is below 1); or `"exact"`, run the module again for every unit. Exact scoring
            needs a module without randomness that maps a tensor of rows to a tensor.
        impl: Implementation of the sums, as in `bsgal_score.ops`.

    Raises:
        ValueError: If no parameter of the modules is in the cache.
        UnsupportedLayerError: With `other_layers="error"`, naming the first such layer.
    """

    def __init__(
        self,
        modules: nn.Module | Sequence[nn.Module],
        cache: GradientCache,
        *,
        other_layers: Literal["error", "skip", "exact"] = "error",
        impl: ops.Implementation = "auto",
    ) -> None:
        if other_layers not in ("error", "skip", "exact"):
            raise ValueError(
                f"`other_layers` must be 'error', 'skip' or 'exact', got {other_layers!r}"
            )
        self.cache = cache
        self.other_layers = other_layers
        self.impl: ops.Implementation = impl
        roots = [modules] if isinstance(modules, nn.Module) else list(modules)
        self._modules = list(dict.fromkeys(m for root in roots for m in root.modules()))
        names = {id(parameter): name for name, parameter in cache.parameters.items()}
        self._bound = [
            (module, attribute, parameter, names[id(parameter)])
            for module in self._modules
            for attribute, parameter in module.named_parameters(recurse=False)
            if id(parameter) in names
        ]
        if not self._bound:
            raise ValueError(
                "no parameter of `modules` is in the cache: make the cache from the model that "
                "holds them, and do not exclude them"
            )
        watched, self._exact = self._sort_out_layers()
        self._recorder = Recorder(watched)
        scored = {*watched, *(name for roles in self._exact.values() for name in roles.values())}
        self.names = tuple(name for name in cache.names if name in scored)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> GhostScorer:
        """Start to record.

        Raises:
            LiveBatchNormError: If one of the modules is a BatchNorm that normalises by its batch.
            ReboundParameterError: If a parameter was replaced since the scorer was made.
        """
        for module in self._modules:
            if isinstance(module, _BatchNorm) and (
                module.training or not module.track_running_stats
            ):
                raise LiveBatchNormError(
                    f"{type(module).__name__} normalises by its batch, so units influence each "
                    "other and cannot be told apart; put it into eval mode or use GroupNorm"
                )
        for module, attribute, parameter, name in self._bound:
            if module._parameters.get(attribute) is not parameter:
                raise ReboundParameterError(
                    f"parameter {name!r} was replaced since the scorer was made; make a new cache "
                    "and a new scorer"
                )
        self._recorder.clear()
        for module, roles in self._exact.items():
            hook = record_module(self._recorder, roles)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        self._recorder.__enter__()  # type: ignore[no-untyped-call]  # torch's
        self._recorder.active = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to record and let go of all activations."""
        self._recorder.active = False
        self._recorder.__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]  # torch's
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorder.clear()

    def score(
        self,
        loss: Tensor,
        unit_index: UnitIndex,
        *,
        n_units: int | None = None,
        loss_scale: float = 1.0,
        norms: bool = True,
        step: StepModel | None = None,
        update_cache: bool = True,
        rows: Rows | Mapping[str, Rows] | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> UnitScores:
        """Feed the reference rows to the cache and score every unit against it.

        The forward pass recorded so far ends here; the graph is kept for the training step.

        Args:
            loss: Scalar, a sum of terms that each belong to one row. A unit's loss is the part of
                it that belongs to its rows, with whatever normalisation it has.
            unit_index: Unit of each row, int64: 0 to n_units - 1, `REFERENCE` (-1) for rows that
                feed the cache, `IGNORED` (-2). One tensor for all layers, or a mapping from the
                beginnings of module names (as in the cache) to a tensor, or to one tensor per call
                of the module.
            n_units: Number of units; by default one more than the largest index.
            loss_scale: What the loss was multiplied by, for example by a gradient scaler.
            norms: Compute norms and cosines too; without them convolutions are cheaper.
            step: Model of the optimizer's next step, for the form `"step"`.
            update_cache: Feed the reference rows to the cache, if there are any.
            rows: Classes present in the reference rows, as in `GradientCache.update`.
            group: Processes that share the cache, for example `torch.distributed.group.WORLD`; all
                of them have to call `score`, and each scores its own units against the mean cache.
                `cache.exchanged_bytes` and 8 more are reduced. None: this process alone.

        Raises:
            ValueError: If nothing was recorded, or `unit_index` does not fit the recorded calls.
            UnsupportedLayerError: If a parameter was used in a way that cannot be scored.
            NonFiniteGradientError: If the reference rows give NaN or Inf; the cache is unchanged.
        """
        self._recorder.active = False
        calls = self._recorded_calls()
        indices = self._index_calls(calls, unit_index)
        largest = max(int(index.max()) if len(index) else IGNORED for index in indices)
        n_units = max(largest + 1, 0) if n_units is None else n_units
        if largest >= n_units:
            raise ValueError(f"`n_units` is {n_units}, but `unit_index` goes up to {largest}")
        if loss.dim() != 0 or not loss.requires_grad:
            raise ValueError("`loss` must be a scalar that requires grad")
        feeds = update_cache and any(bool((index == REFERENCE).any()) for index in indices)
        if feeds and step is not None and step.reference_at == "look_ahead":
            raise ValueError(
                "the reference rows of this pass are taken at the weights of now, and the step "
                "model looks ahead: pass update_cache=False, after "
                "cache.update(step.reference_gradients(model, reference_loss))"
            )
        with torch.autocast(loss.device.type, enabled=False):
            output_grads = torch.autograd.grad(
                loss, [call.edge for call in calls], retain_graph=True, allow_unused=True
            )
            reached = [
                Reached(call, index, _unscaled(gradient, loss_scale))
                for call, index, gradient in zip(calls, indices, output_grads, strict=True)
                if gradient is not None
            ]
            with torch.no_grad():
                if update_cache:
                    self._feed(reached, step, rows, group)
                return self._score_units(reached, indices, n_units, norms=norms, step=step)

    def _feed(
        self,
        reached: list[Reached],
        step: StepModel | None,
        rows: Rows | Mapping[str, Rows] | None,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Feed the reference rows to the curvature and the cache: to both, or raise."""
        curvature = None if step is None else step.curvature
        estimate, problem = None, None
        if curvature is not None:
            try:
                estimate = curvature.estimate(_reference_rows(reached))
            except NonFiniteGradientError as error:
                problem = error
        has_reference = any(bool((one.index == REFERENCE).any()) for one in reached)
        if group is not None:
            # Together, lest the others wait forever for one that has raised.
            has_reference = any_process(has_reference, group)
            if curvature is not None and any_process(problem is not None, group):
                problem = problem or NonFiniteGradientError(
                    "the reference rows of another process give NaN or Inf; nothing was changed"
                )
        if problem is not None:
            raise problem
        if has_reference:
            self.cache.update(gradients(reached, REFERENCE), rows=rows, group=group)
        if curvature is not None and estimate is not None:
            curvature.blend(estimate)

    def _sort_out_layers(self) -> tuple[dict[str, Tensor], dict[nn.Module, dict[str, str]]]:
        """Find the parameters to watch, and the modules to score exactly with their parameters."""
        watched: dict[str, Tensor] = {}
        exact: dict[nn.Module, dict[str, str]] = defaultdict(dict)
        for module, attribute, parameter, name in self._bound:
            if isinstance(module, _SUPPORTED_MODULES):
                watched[name] = parameter
            elif self.other_layers == "error":
                raise UnsupportedLayerError(
                    f"{name!r} belongs to a {type(module).__name__}, which cannot be scored row by "
                    "row; pass other_layers='exact' or 'skip', or exclude it from the cache"
                )
            elif self.other_layers == "exact":
                exact[module][attribute] = name
        return watched, dict(exact)

    def _recorded_calls(self) -> list[Call]:
        calls, other_uses = self._recorder.calls, self._recorder.other_uses
        if other_uses and self.other_layers != "skip":
            name, reason = next(iter(other_uses.items()))
            raise UnsupportedLayerError(
                f"{name!r} cannot be scored: {reason}; pass other_layers='skip', or exclude it "
                "from the cache"
            )
        calls = [call for call in calls if not set(call.names.values()) & set(other_uses)]
        if not calls:
            raise ValueError(
                "no call was recorded: run the forward pass inside `with scorer:`, with gradients "
                "enabled, and call `score` before the block ends"
            )
        layers: dict[str, frozenset[str]] = {}
        for call in calls:
            layer = frozenset(call.names.values())
            for name in layer:
                if layers.setdefault(name, layer) != layer:
                    raise UnsupportedLayerError(
                        f"{name!r} is shared by layers with different parameters, {sorted(layer)} "
                        f"and {sorted(layers[name])}; exclude it from the cache"
                    )
        return calls

    def _index_calls(self, calls: list[Call], unit_index: UnitIndex) -> list[Tensor]:
        """Find every call's unit index, one entry per row."""
        n_calls: dict[str, int] = defaultdict(int)
        indices = []
        for call in calls:
            name = next(iter(call.names.values())).rpartition(".")[0]
            index = _find_index(unit_index, name, n_calls[name])
            n_calls[name] += 1
            n_rows = len(call.inputs)
            if index.dtype != torch.int64 or index.shape != (n_rows,):
                raise ValueError(
                    f"`unit_index` must be int64 of shape ({n_rows},) for {name!r}, which saw "
                    f"{n_rows} rows; got {index.dtype} of shape {tuple(index.shape)}; layers with "
                    "rows of their own need a mapping from module name to index"
                )
            indices.append(index.to(call.inputs.device))
        return indices

    def _score_units(
        self,
        reached: list[Reached],
        indices: list[Tensor],
        n_units: int,
        *,
        norms: bool,
        step: StepModel | None,
    ) -> UnitScores:
        device = next(iter(self.cache.parameters.values())).device
        cached = {name: self.cache[name] for name in self.names}
        directions = [cached]
        moved: set[str] = set()
        if step is not None:
            parameters = {name: self.cache.parameters[name] for name in self.names}
            metric = zip(parameters, step.metric(parameters), strict=True)
            moved = {name for name, one in metric if one.scale != 0}
            reference = step.reference(self.cache)
            reference = {name: reference[name] for name in self.names}
            if step.is_linear:
                directions.append(step.directions(reference, parameters))
        dots = torch.zeros(len(directions), n_units, dtype=torch.float64)
        effects, sqnorm, moved_sqnorm = torch.zeros(3, n_units, dtype=torch.float64)
        layers: dict[frozenset[str], list[Reached]] = defaultdict(list)
        for one in reached:
            layers[frozenset(one.call.names.values())].append(one)
        for names, layer in layers.items():
            layer_dots, layer_sqnorm = score_layer(
                layer, directions, n_units, norms=norms, impl=self.impl
            )
            dots += layer_dots
            sqnorm += layer_sqnorm
            if not names.isdisjoint(moved):
                moved_sqnorm += layer_sqnorm
            if step is not None and not step.is_linear:
                effects += step_effects(layer, step, reference, parameters, n_units)
        sides: dict[Form, Sides] = {"dot": Sides(self._sqnorm(cached), sqnorm)}
        if norms:
            sides["cosine"] = sides["dot"]
        if step is not None:
            moving = {name: cached[name] for name in self.names if name in moved}
            sides["step"] = Sides(self._sqnorm(moving), moved_sqnorm)
        cosines = [
            cosine(dot=dot, cache_sqnorm=sides["dot"].cache_sqnorm, candidate_sqnorm=candidate)
            for dot, candidate in zip(dots[0].tolist(), sqnorm.tolist(), strict=True)
        ]
        rows = torch.zeros(n_units, dtype=torch.int64)
        for index in indices:
            rows = rows.maximum(torch.bincount(index[index >= 0].cpu(), minlength=n_units))
        n_scored = sum(cached[name].numel() for layer in layers for name in layer)
        return UnitScores(
            dot=dots[0].to(device),
            norm=sqnorm.sqrt().to(device) if norms else None,
            cosine=torch.tensor(cosines, dtype=torch.float64, device=device) if norms else None,
            rows=rows.to(device),
            step=None if step is None else (dots[1] if step.is_linear else effects).to(device),
            coverage=n_scored / sum(p.numel() for p in self.cache.parameters.values()),
            sides={form: Sides(one[0], one[1].to(device)) for form, one in sides.items()},
        )

    def _sqnorm(self, tensors: Mapping[str, Tensor]) -> float:
        if not tensors:
            return 0.0
        sums = ops.cache_update_dot(list(tensors.values()), None, None, impl=self.impl)
        return float(sums.cache_sqnorm)


def _reference_rows(reached: list[Reached]) -> Iterator[CallRows]:
    for one in reached:
        chosen = (one.index == REFERENCE).nonzero().flatten()
        yield CallRows(one.call, chosen, one.output_grads[chosen])


def _unscaled(gradient: Tensor, loss_scale: float) -> Tensor:
    # First the wider dtype: unscaled, half-precision gradients can underflow.
    gradient = gradient.to(compute_dtype(gradient))
    return gradient if loss_scale == 1.0 else gradient / loss_scale


def _find_index(unit_index: UnitIndex, name: str, n_calls_before: int) -> Tensor:
    found: Any = unit_index
    if isinstance(unit_index, Mapping):
        beginnings = [key for key in unit_index if f"{name}.".startswith(f"{key}." if key else "")]
        if not beginnings:
            raise ValueError(
                f"`unit_index` has no entry for {name!r}; its keys are {list(unit_index)}"
            )
        found = unit_index[max(beginnings, key=len)]
    if isinstance(found, Tensor):
        return found
    if n_calls_before >= len(found):
        raise ValueError(
            f"`unit_index` lists {len(found)} calls of {name!r}, which was called more often"
        )
    index: Tensor = found[n_calls_before]
    return index
