"""Score units against real data of their own class, on their own row of the classifier.

A linear classifier z = W a + b has one row of parameters per class. Of a unit's gradient, the part
on its own class's row is v = Σ_r δ_rc (a_r, 1), with the output gradients δ, the inputs a, the
unit's rows r and its class c. It says what the class would learn from the unit. Real objects of the
class say what it should learn, and a cache of their sum takes no more memory than the classifier.

The gradient of the whole loss hides that: every positive example of every class asks for much the
same of the shared layers, so that two of them agree whatever they show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ._distributed import agreed, unite
from ._linear_maps import check_version, version_of
from ._loss_check import check_loss
from .eager.ghost import compute_dtype, sum_by_unit
from .errors import NonFiniteGradientError, StateMismatchError


class ClassRowScorer:
    """Record classifiers in a forward pass, then compare units with real ones of their class.

    Where there are several classifiers, as in a cascade, the row of a class is made of its rows in
    all of them. The cache is kept in float32 beside the first classifier, one row per class; it
    follows no other change of the classifiers than what their gradients show.

        with scorer:
            loss = ...
            cosines = scorer.score(loss, unit_index, unit_classes, is_reference)

    Args:
        classifiers: Linear layers with one output per class, the same classes in each.
        decay: Weight of a class's old row when it is updated, in [0, 1). Classes without a
            reference unit in a step keep their row.

    Raises:
        ValueError: If the classifiers have different numbers of outputs, or `decay` is out of
            range.
    """

    def __init__(self, classifiers: nn.Linear | Sequence[nn.Linear], *, decay: float = 0.9) -> None:
        chosen = [classifiers] if isinstance(classifiers, nn.Linear) else list(classifiers)
        outputs = sorted({one.out_features for one in chosen})
        if len(outputs) != 1:
            raise ValueError(
                "`classifiers` must be linear layers with the same number of outputs, got "
                f"{outputs or 'none'}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must lie in [0, 1), got {decay}")
        self.decay = float(decay)
        self.n_classes = outputs[0]
        self._classifiers = chosen
        # An input that is always 1 stands for the bias.
        self._widths = [one.in_features + 1 for one in chosen]
        self.rows = torch.zeros(self.n_classes, sum(self._widths), device=chosen[0].weight.device)
        """The cached gradient of each class's row: (n_classes, inputs and biases), float32."""
        self._calls: list[_Call] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> ClassRowScorer:
        """Start to record."""
        self._calls.clear()
        self._handles = [
            one.register_forward_hook(self._record_as(number), with_kwargs=True)
            for number, one in enumerate(self._classifiers)
        ]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to record and let go of all activations."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()

    def score(
        self,
        loss: Tensor,
        unit_index: Tensor | Sequence[Tensor],
        unit_classes: Tensor,
        is_reference: Tensor,
        *,
        loss_scale: float = 1.0,
        group: dist.ProcessGroup | None = None,
    ) -> list[float | None]:
        """Compare every unit with its class's cached row, then feed the reference units to it.

        So the score of a reference unit, too, is one against others of its class: it says what to
        expect of a good unit (see `ReferenceQuantile`). The backward pass ends at the classifiers'
        outputs, and the graph is kept for the training step.

        Args:
            loss: Scalar, a sum of terms that each belong to one row. A constant factor of it is of
                no account; one that changes from step to step weighs the steps in the cache.
            unit_index: int64, unit of each row, negative for rows that are no unit's; one tensor
                per recorded call in the order of the calls, or one for all.
            unit_classes: int64 (n_units,), each in [0, n_classes).
            is_reference: bool (n_units,), units of real data.
            loss_scale: What the loss was multiplied by, for example by a gradient scaler.
            group: Processes that share the cache; all of them have to call `score`. 8 bytes,
                `n_classes` bytes and the rows of the classes that are present are reduced. None:
                this process alone.

        Returns:
            The cosine of each unit's gradient with the cache on its class's row; None without
            evidence: no row, a zero gradient, or a class that the cache has not seen. NaN where
            the unit's gradient is not finite.

        Raises:
            ValueError: If nothing was recorded or an argument does not fit it; the cache is
                unchanged, as for all errors.
            ChangedInputError: If an input was written to since the call.
            NonFiniteGradientError: If a reference unit gives NaN or Inf.
            OtherProcessError: If another process of the group raises.
        """
        with agreed(group):
            calls = self._unchanged_calls()
            check_loss(loss, loss_scale)
            self._check_units(unit_classes, is_reference)
            indices = _index_calls(calls, unit_index, len(unit_classes))
            with torch.autocast(loss.device.type, enabled=False):
                gradients = torch.autograd.grad(
                    loss, [call.edge for call in calls], retain_graph=True, allow_unused=True
                )
            with torch.no_grad():
                units = self._unit_rows(calls, indices, gradients, unit_classes) / loss_scale
                classes = unit_classes.to(units.device)
                real = is_reference.to(units.device)
                found = self._cosines(units, classes)
        with torch.no_grad():
            self._feed(units[real], classes[real], group)
        return found

    def rebind(self, classifiers: nn.Linear | Sequence[nn.Linear]) -> None:
        """Go on with the classifiers of a copy of the model, on their device.

        Raises:
            ValueError: If they have other sizes; nothing is changed.
        """
        chosen = [classifiers] if isinstance(classifiers, nn.Linear) else list(classifiers)
        wanted = [(one.in_features, one.out_features) for one in self._classifiers]
        found = [(one.in_features, one.out_features) for one in chosen]
        if found != wanted:
            raise ValueError(f"`classifiers` must have inputs and outputs {wanted}, got {found}")
        self._classifiers = chosen
        self.rows = self.rows.to(chosen[0].weight.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the cache and its decay."""
        return {"decay": self.decay, "rows": self.rows.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            StateMismatchError: If it is of other classifiers or another decay.
        """
        saved = tuple(state["rows"].shape)
        if saved != tuple(self.rows.shape) or state["decay"] != self.decay:
            raise StateMismatchError(
                f"the saved state has rows of shape {saved} and decay {state['decay']}, this "
                f"object has {tuple(self.rows.shape)} and {self.decay}; make it with the saved "
                "settings"
            )
        self.rows.copy_(state["rows"])

    def _record_as(self, number: int) -> Any:
        def hook(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
        ) -> None:
            if output.requires_grad:
                inputs = args[0] if args else kwargs["input"]
                edge = get_gradient_edge(output)
                self._calls.append(_Call(number, inputs.detach(), version_of(inputs), edge))

        return hook

    def _unchanged_calls(self) -> list[_Call]:
        if not self._calls:
            raise ValueError(
                "no call was recorded: run the forward pass inside `with scorer:`, with gradients "
                "enabled and with the classifiers themselves, not copies of them, and call `score` "
                "before the block ends"
            )
        for call in self._calls:
            check_version(call.inputs, call.version, [f"classifiers[{call.classifier}].weight"])
        return list(self._calls)

    def _check_units(self, unit_classes: Tensor, is_reference: Tensor) -> None:
        if not _is(unit_classes, torch.int64) or unit_classes.dim() != 1:
            raise ValueError(
                f"`unit_classes` must be int64 of shape (n_units,); got {_described(unit_classes)}"
            )
        n_units = len(unit_classes)
        if not _is(is_reference, torch.bool) or is_reference.shape != (n_units,):
            raise ValueError(
                f"`is_reference` must be bool of shape ({n_units},), as there are classes; got "
                f"{_described(is_reference)}"
            )
        if n_units and not 0 <= int(unit_classes.min()) <= int(unit_classes.max()) < self.n_classes:
            raise ValueError(
                f"`unit_classes` must lie in [0, {self.n_classes}), got {int(unit_classes.min())} "
                f"to {int(unit_classes.max())}"
            )

    def _unit_rows(
        self,
        calls: Sequence[_Call],
        indices: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        unit_classes: Tensor,
    ) -> Tensor:
        """Return v of every unit, (n_units, inputs and biases of all classifiers), float64."""
        n_units = len(unit_classes)
        parts = [
            torch.zeros(n_units, width, dtype=torch.float64, device=self.rows.device)
            for width in self._widths
        ]
        for call, index, gradient in zip(calls, indices, gradients, strict=True):
            if gradient is None:
                continue
            dtype = compute_dtype(gradient)
            chosen = (index >= 0).nonzero().flatten().to(gradient.device)
            units = index.to(gradient.device)[chosen]
            own = unit_classes.to(units.device)[units]
            weights = gradient[chosen, own].to(dtype)[:, None]
            inputs = call.inputs[chosen].to(dtype)
            products = torch.cat([weights * inputs, weights], dim=1)
            parts[call.classifier] += sum_by_unit(products, units, n_units).to(self.rows.device)
        return torch.cat(parts, dim=1)

    def _cosines(self, units: Tensor, classes: Tensor) -> list[float | None]:
        own = self.rows[classes].double()
        norms = units.norm(dim=1) * own.norm(dim=1)
        cosines = (units * own).sum(dim=1) / norms
        return [
            None if norm == 0 else cosine if math.isfinite(norm) else math.nan
            for cosine, norm in zip(cosines.tolist(), norms.tolist(), strict=True)
        ]

    def _feed(self, units: Tensor, classes: Tensor, group: dist.ProcessGroup | None) -> None:
        present = torch.unique(classes)
        if group is not None:
            present = unite(present, self.n_classes, group)
        if not len(present):
            return
        place = torch.full((self.n_classes,), -1, device=units.device)
        place[present] = torch.arange(len(present), device=units.device)
        sums = sum_by_unit(units, place[classes], len(present)).to(self.rows.dtype)
        if group is not None:
            dist.all_reduce(sums, group=group)
        if not bool(sums.isfinite().all()):
            bad = present[~sums.isfinite().all(dim=1)].tolist()
            raise NonFiniteGradientError(
                f"the reference units of classes {bad[:5]} give NaN or Inf; the cache is unchanged"
            )
        self.rows[present] = torch.lerp(sums, self.rows[present], self.decay)


@dataclass(frozen=True)
class _Call:
    """A recorded call."""

    classifier: int
    inputs: Tensor
    """(R, inputs); the memory that the classifier read."""
    version: int | None
    """Of the inputs when the call was made."""
    edge: GradientEdge
    """Where δ is taken."""


def _index_calls(
    calls: Sequence[_Call], unit_index: Tensor | Sequence[Tensor], n_units: int
) -> list[Tensor]:
    indices = [unit_index] * len(calls) if isinstance(unit_index, Tensor) else list(unit_index)
    if len(indices) != len(calls):
        raise ValueError(f"`unit_index` lists {len(indices)} calls, but {len(calls)} were recorded")
    for index, call in zip(indices, calls, strict=True):
        n_rows = len(call.inputs)
        fits = _is(index, torch.int64) and index.shape == (n_rows,)
        if call.inputs.dim() != 2 or not fits:
            raise ValueError(
                "`unit_index` must be int64 with one entry per row of inputs (R, inputs); got "
                f"{_described(index)} for inputs {tuple(call.inputs.shape)}"
            )
        if n_rows and int(index.max()) >= n_units:
            raise ValueError(
                f"`unit_index` goes up to {int(index.max())}, but there are {n_units} units"
            )
    return indices


def _is(value: object, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
