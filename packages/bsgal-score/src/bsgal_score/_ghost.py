"""Score many units of one forward pass at once, without forming a gradient per unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import ops
from ._cache import GradientCache, Rows
from ._curvature import CallRows
from ._distributed import agreed, any_process
from ._layer_kinds import BoundParameter, OtherLayers, sort_out_layers
from ._layer_scores import Reached, gradients
from ._layout import check_whole
from ._loss_check import check_loss
from ._pass_scores import ScoredPass, score_pass
from ._recorder import Recorder, record_module, without_parameters
from ._rejection import reject, subtract
from ._step_model import StepModel
from ._unit_index import IGNORED, REFERENCE, IndexedCall, UnitAxis, UnitIndex, index_calls
from ._unit_scores import UnitScores
from ._verification import verify
from .eager.ghost import compute_dtype
from .errors import (
    LiveBatchNormError,
    ReboundParameterError,
    UnsupportedLayerError,
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
            scorer.reject([...])  # units that loss.backward() shall not learn from

    Args:
        modules: Modules whose parameters (those in the cache) are scored.
        cache: The gradient cache to score against and to feed.
        other_layers: What to do about a parameter in a layer other than Linear, convolutions,
            GroupNorm, LayerNorm, RMSNorm, Embedding and frozen BatchNorm: `"error"`; `"skip"` it
            (then `coverage` is below 1); or `"exact"`, run the module again for every unit. Exact
            scoring needs a module without randomness that maps a tensor of rows to a tensor, or a
            MultiheadAttention, LSTM, GRU or RNN.
        impl: Implementation of the sums, as in `bsgal_score.ops`.

    Raises:
        ValueError: If no parameter of the modules is in the cache.
        UnsupportedLayerError: With `other_layers="error"`, naming all such layers.
    """

    def __init__(
        self,
        modules: nn.Module | Sequence[nn.Module],
        cache: GradientCache,
        *,
        other_layers: OtherLayers = "error",
        impl: ops.Implementation = "auto",
    ) -> None:
        if other_layers not in ("error", "skip", "exact"):
            raise ValueError(
                f"`other_layers` must be 'error', 'skip' or 'exact', got {other_layers!r}"
            )
        self.cache = cache
        self.other_layers: OtherLayers = other_layers
        self.impl: ops.Implementation = impl
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._scored: ScoredPass | None = None
        self._bind(modules)

    def __enter__(self) -> GhostScorer:
        """Start to record.

        Raises:
            LiveBatchNormError: If one of the modules is a BatchNorm that normalises by its batch.
            ReboundParameterError: If a parameter was replaced since the scorer was made.
            ShardedParameterError: If it was sharded since.
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
            check_whole(name, module._parameters.get(attribute))
            if module._parameters.get(attribute) is not parameter:
                raise ReboundParameterError(
                    f"parameter {name!r} was replaced since the scorer was made; call "
                    "scorer.rebind(modules, model.named_parameters())"
                )
        for module, roles in self._exact.items():
            self._handles += record_module(self._recorder, module, roles)
        self._recorder.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to record and let go of all activations."""
        self._scored = None
        self._recorder.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorder.forget()

    def score(
        self,
        loss: Tensor,
        unit_index: UnitIndex,
        *,
        n_units: int | None = None,
        unit_axis: UnitAxis = None,
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
                feed the cache, `IGNORED` (-2). Its shape is that of one axis of the layers' inputs
                (rows), or of several neighbouring ones, as (batch, queries) or (layers, batch,
                queries). One tensor for all layers, or a mapping from the beginnings of module
                names (as in the cache) to a tensor, or to one tensor per call of the module.
            n_units: Number of units; by default one more than the largest index.
            unit_axis: Axis of the input along which `unit_index` runs, the first of them if it has
                several, where a layer's input has several axes before its features: of a Linear,
                LayerNorm or Embedding. One number for all layers, or a mapping from the beginnings
                of module names. None is the first, and raises where the index fits other axes too,
                or these in another order. Convolutions, GroupNorm and BatchNorm always have their
                rows along the first.
            loss_scale: What the loss was multiplied by, for example by a gradient scaler.
            norms: Compute norms and cosines too; without them convolutions are cheaper.
            step: Model of the optimizer's next step, for the form `"step"`.
            update_cache: Feed the reference rows to the cache, if there are any.
            rows: Classes present in the reference rows, as in `GradientCache.update`.
            group: Processes that share the cache, for example `torch.distributed.group.WORLD`; all
                of them have to call `score`, and each scores its own units against the mean cache.
                `cache.exchanged_bytes` and 16 more are reduced, and where one raises, all do. None:
                this process alone.

        Raises:
            ValueError: If nothing was recorded, or `unit_index` does not fit the recorded calls, or
                does not say along which of several axes it runs.
            UnsupportedLayerError: If the loss depends on a parameter in a way that cannot be
                scored, or that was not recorded; all such parameters are named.
            OtherProcessError: If another process of the group raises something else.
            ChangedInputError: If the input of a recorded call was written to after the call.
            NonFiniteGradientError: If the reference rows give NaN or Inf; cache and curvature stay.
        """
        self._recorder.active = False
        exchanging = group if update_cache else None
        curvature = step.curvature if step is not None and update_cache else None
        with torch.autocast(loss.device.type, enabled=False):
            with agreed(exchanging):
                check_loss(loss, loss_scale)
                calls = self._recorded_calls(loss, unit_index, unit_axis)
                n_units = _checked_n_units(calls, n_units)
                if update_cache and step is not None and step.reference_at == "look_ahead":
                    _check_no_reference(calls)
                reached = _reached(loss, calls, loss_scale)
                with torch.no_grad():
                    reference = gradients(reached, REFERENCE) if update_cache else {}
                    observed = None if curvature is None else curvature.estimate(_real(reached))
            with torch.no_grad():
                if (
                    bool(reference)
                    if exchanging is None
                    else any_process(bool(reference), exchanging)
                ):
                    self.cache.update(reference, rows=rows, group=group)
                if curvature is not None and observed is not None:
                    # Only now, when the cache has not raised.
                    curvature.blend(observed)
                self._scored = ScoredPass(loss, loss_scale, calls, reached, n_units, self.names)
                return score_pass(self._scored, self.cache, norms=norms, step=step, impl=self.impl)

    def rebind(
        self,
        modules: nn.Module | Sequence[nn.Module],
        named_parameters: Iterable[tuple[str, Tensor]],
    ) -> None:
        """Go on with a copy of the model: what was copied, unpickled, or made anew and loaded.

        Parameters are known as objects, so that a copy of this scorer goes with the copy of the
        model that was made along with it, and with no other.

        Args:
            modules: Those of the new model that stand for the ones this object was made with.
            named_parameters: Of the new model, with the names of the cache, which is rebound too.

        Raises:
            ReboundParameterError: If a parameter is missing or has another shape; nothing changes.
            ValueError, UnsupportedLayerError: As when a scorer is made.
        """
        self.cache.rebind(named_parameters)
        self._bind(modules)

    def verify(self, unit_losses: Mapping[int, Tensor]) -> None:
        """Compare the gradients of a few units with those that autograd gives, layer by layer.

        To be called after `score`, before a backward pass frees the graph: once, when a model is
        new. It takes a backward pass through the whole model for every unit.

        Args:
            unit_losses: Unit to its own part of the `loss` that was scored, with the graph of it.

        Raises:
            WrongUnitError: Naming the parameter that is furthest off. Half of the digits of its
                dtype have to agree.
            ValueError: Without scores, or if there is no such unit.
        """
        verify(self._last_scored(), unit_losses, self.cache.parameters)

    def reject(self, units: Sequence[int] | Tensor) -> None:
        """Make the backward pass of the loss learn nothing from some units.

        To be called after `score`; then `loss.backward()` gives all parameters, below the recorded
        layers too, the gradients of the loss without the terms of these units' rows, with the same
        normalisation. No loss per row is needed.

        Args:
            units: Which, from 0 to n_units - 1. Further calls add to them.

        Raises:
            UnsupportedLayerError: If the loss reaches a parameter past all layers that are scored.
            ValueError: Without scores, or if there is no such unit.
        """
        scored = self._last_scored()
        reject(scored, scored.units(units))

    def subtract(self, units: Sequence[int] | Tensor) -> None:
        """Take what some units gave to `.grad` out of it again, after `loss.backward()`.

        For loops that decide when the backward pass is over, and models that are scored as a
        whole. `.grad` has to be as the backward pass left it, not unscaled or clipped yet.

        Args:
            units: Which, from 0 to n_units - 1.

        Raises:
            UnsupportedLayerError: If the loss trains a parameter that is not scored, or in a
                process group of several.
            ValueError: Without scores or `.grad`, or if there is no such unit.
        """
        scored = self._last_scored()
        with torch.no_grad():
            subtract(scored, scored.units(units), self.cache.parameters)

    def _last_scored(self) -> ScoredPass:
        if self._scored is None:
            raise ValueError("no units were scored: call `score` first, inside `with scorer:`")
        return self._scored

    def _bind(self, modules: nn.Module | Sequence[nn.Module]) -> None:
        """Find the layers of some modules, and what of them is in the cache."""
        roots = [modules] if isinstance(modules, nn.Module) else list(modules)
        self._modules = list(dict.fromkeys(m for root in roots for m in root.modules()))
        names = {id(parameter): name for name, parameter in self.cache.parameters.items()}
        self._bound = [
            BoundParameter(module, attribute, parameter, names[id(parameter)])
            for module in self._modules
            for attribute, parameter in module.named_parameters(recurse=False)
            if id(parameter) in names
        ]
        if not self._bound:
            raise ValueError(
                "no parameter of `modules` is in the cache: make the cache from the model that "
                "holds them, and do not exclude them"
            )
        watched, self._exact, self._others = sort_out_layers(self._bound, self.other_layers)
        self._recorder = Recorder(watched)
        self._watched = tuple(name for name in self.cache.names if name in watched)
        self.names = self._watched
        """Parameters that the last scores are about; before the first, all that may be scored."""
        self.left_out: dict[str, str] = dict(self._others)
        """Parameters of the modules and the cache that they are not about, and why."""

    def _recorded_calls(
        self, loss: Tensor, unit_index: UnitIndex, unit_axis: UnitAxis
    ) -> list[IndexedCall]:
        """Return the calls to score with their indices; raise unless they are all there is."""
        recorder = self._recorder
        if not recorder.calls and not recorder.saw_parameters:
            raise ValueError(self._why_nothing_was_recorded(loss))
        unsupported = recorder.unrecorded(loss)
        self._raise_on(unsupported)
        calls = without_parameters(recorder.calls, unsupported)
        indexed, without = index_calls(calls, unit_index, unit_axis)
        self._raise_on(without)
        indexed = [one for one in indexed if without.keys().isdisjoint(one.call.names.values())]
        skipped = unsupported.keys() | without.keys()
        self.left_out = self._others | unsupported | without
        self.names = tuple(name for name in self._watched if name not in skipped)
        if not indexed and skipped:
            raise UnsupportedLayerError(f"all was skipped: {_listed(unsupported | without)}")
        if not indexed:
            raise ValueError(self._why_nothing_was_recorded(loss))
        layers: dict[str, frozenset[str]] = {}
        for one in indexed:
            layer = frozenset(one.call.names.values())
            for name in layer:
                if layers.setdefault(name, layer) != layer:
                    raise UnsupportedLayerError(
                        f"{name!r} is shared by layers with different parameters, {sorted(layer)} "
                        f"and {sorted(layers[name])}; exclude it from the cache"
                    )
        return indexed

    def _raise_on(self, unsupported: Mapping[str, str]) -> None:
        if unsupported and self.other_layers != "skip":
            raise UnsupportedLayerError(
                f"{_listed(unsupported)}; pass other_layers='skip', or exclude from the cache what "
                "cannot be scored"
            )

    def _why_nothing_was_recorded(self, loss: Tensor) -> str:
        message = (
            "no call was recorded: run the forward pass inside `with scorer:`, with gradients "
            "enabled, and call `score` before the block ends"
        )
        if self._recorder.n_unwatched:
            message += (
                f"; {self._recorder.n_unwatched} calls of layers did run inside it, with other "
                "parameters than the cache's. Parameters are known as objects, and a module that "
                "was copied (deepcopy), unpickled, sharded (FSDP) or called with other tensors "
                "(functional_call) has others: make cache and scorer from the module that runs, or "
                "call scorer.rebind"
            )
        elif used := self._recorder.unrecorded(loss):
            message += (
                f"; the loss does depend on {sorted(used)}, by calls before the block, or in "
                "TorchScript, which cannot be watched"
            )
        return message


def _listed(unsupported: Mapping[str, str]) -> str:
    return "; ".join(f"{name!r} cannot be scored: {why}" for name, why in unsupported.items())


def _checked_n_units(calls: Sequence[IndexedCall], n_units: int | None) -> int:
    largest = max(int(one.index.max()) if len(one.index) else IGNORED for one in calls)
    if n_units is None:
        return max(largest + 1, 0)
    if largest >= n_units:
        raise ValueError(f"`n_units` is {n_units}, but `unit_index` goes up to {largest}")
    return n_units


def _check_no_reference(calls: Sequence[IndexedCall]) -> None:
    if any(bool((one.index == REFERENCE).any()) for one in calls):
        raise ValueError(
            "the reference rows of this pass are taken at the weights of now, and the step model "
            "looks ahead: pass update_cache=False, after "
            "cache.update(step.reference_gradients(model, reference_loss))"
        )


def _reached(loss: Tensor, calls: Sequence[IndexedCall], loss_scale: float) -> list[Reached]:
    """Find the gradients of the loss in the outputs of the calls that it depends on."""
    found = torch.autograd.grad(
        loss, [one.call.edge for one in calls], retain_graph=True, allow_unused=True
    )
    reached = []
    for one, gradient in zip(calls, found, strict=True):
        if gradient is None:
            continue
        one.call.check_input()
        output_grads = _unscaled(one.rows_of(gradient), loss_scale)
        reached.append(Reached(one.call, one.index, output_grads))
    return reached


def _real(reached: Sequence[Reached]) -> Iterator[CallRows]:
    """Yield the reference rows of the calls, for the curvature."""
    for one in reached:
        chosen = (one.index == REFERENCE).nonzero().flatten()
        yield CallRows(one.call, chosen, one.output_grads[chosen])


def _unscaled(gradient: Tensor, loss_scale: float) -> Tensor:
    # First the wider dtype: unscaled, half-precision gradients can underflow.
    gradient = gradient.to(compute_dtype(gradient))
    return gradient if loss_scale == 1.0 else gradient / loss_scale
