"""Curvature of the reference loss, estimated from the gradients of its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from ._linear_maps import LinearCall
from ._recorder import Call
from .eager.ghost import compute_dtype
from .errors import NonFiniteGradientError, StateMismatchError

CurvatureKind = Literal["scalar", "diagonal", "kfac"]

_KINDS = ("scalar", "diagonal", "kfac")
# A square factor of this size takes 64 MB in fp32; layers beyond it keep a diagonal.
_LARGEST_FACTOR = 4096


class CallRows(NamedTuple):
    """Some rows of a recorded call, with the gradients that the reference loss sends into them."""

    call: Call
    rows: Tensor
    """Indices of the rows."""
    output_grads: Tensor
    """∂L_ref/∂output of those rows."""


@dataclass(frozen=True)
class Estimate:
    """What the reference rows of one batch show of the curvature, before it is averaged."""

    diagonal: dict[str, Tensor] = field(default_factory=dict)
    """Name to h."""
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Name of the weight to A and B."""
    bias_of: dict[str, str] = field(default_factory=dict)
    """Name of the weight to that of its layer's bias."""


class Curvature:
    """H, an estimate of the reference loss's Hessian, as a running average over reference batches.

    The loss is taken as a mean over all n rows of a layer's call. With r what a reference row adds
    to the gradient, H = n·Σ r rᵀ, the empirical Fisher matrix, layer by layer. Of it is kept

        diagonal  the diagonal h
        scalar    one number, Σ h² / Σ h: the mean of h where gradients are large
        kfac      per layer A ⊗ B, with A the mean of a aᵀ over inputs a (and a 1 for the bias) and
                  B = n·Σ δ δᵀ over output gradients δ (Martens & Grosse 2015, section 3; Grosse &
                  Martens 2016, section 3.1, for convolutions); the diagonal for other layers
                  and where a factor would be larger than 4096 x 4096

    Args:
        kind: Which of them.
        decay: Weight of the old average, in [0, 1).
    """

    def __init__(self, kind: CurvatureKind, *, decay: float) -> None:
        if kind not in _KINDS:
            raise ValueError(f"`curvature` must be 'none' or one of {_KINDS}, got {kind!r}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`curvature_decay` must lie in [0, 1), got {decay}")
        self.kind = kind
        self.decay = float(decay)
        self.n_updates = 0
        self._scalar = 0.0
        self._diagonal: dict[str, Tensor] = {}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        """Name of the weight to A (n_inputs + 1,)² and B (n_outputs,)²."""
        self._bias_of: dict[str, str] = {}

    def update(self, observed: Iterable[CallRows]) -> None:
        """Blend in what one reference batch shows; layers that it does not reach stay.

        Args:
            observed: The recorded calls with their reference rows.

        Raises:
            NonFiniteGradientError: As `estimate`.
        """
        self.blend(self.estimate(observed))

    def estimate(self, observed: Iterable[CallRows]) -> Estimate:
        """Return what one reference batch shows, and change nothing.

        Args:
            observed: The recorded calls with their reference rows.

        Raises:
            NonFiniteGradientError: If an entry is NaN or Inf, which an average would keep for good.
        """
        layers: dict[frozenset[str], list[CallRows]] = defaultdict(list)
        for one in observed:
            if len(one.rows):
                layers[frozenset(one.call.names.values())].append(one)
        new = Estimate()
        for calls in layers.values():
            if self.kind == "kfac" and all(map(_has_factors, calls)):
                names = calls[0].call.names
                new.factors[names["weight"]] = _factors(calls)
                if "bias" in names:
                    new.bias_of[names["weight"]] = names["bias"]
            else:
                new.diagonal.update(_diagonal(calls))
        for name, tensors in [*((n, (h,)) for n, h in new.diagonal.items()), *new.factors.items()]:
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                raise NonFiniteGradientError(
                    f"the reference rows give {name!r} a curvature with NaN or Inf; neither the "
                    "curvature nor the cache was changed; skip this batch"
                )
        return new

    def blend(self, new: Estimate) -> None:
        """Take an estimate into the running average."""
        if not (new.diagonal or new.factors):
            return
        n, d = self.n_updates, self.decay
        # The weight of a running average with bias correction, as in the gradient cache.
        old_weight = d * (1 - d**n) / (1 - d ** (n + 1))
        if self.kind == "scalar":
            # In double, whose range holds the squares of what float32 holds.
            h = [diagonal.double() for diagonal in new.diagonal.values()]
            total = sum(float(one.sum()) for one in h)
            mean = sum(float(one.square().sum()) for one in h) / total if total > 0 else 0.0
            self._scalar = old_weight * self._scalar + (1 - old_weight) * mean
        else:
            for name, diagonal in new.diagonal.items():
                _blend(self._diagonal, name, diagonal, old_weight)
        for name, factors in new.factors.items():
            old = self._factors.get(name)
            self._factors[name] = (
                factors
                if old is None
                else (
                    old[0].lerp_(factors[0], 1 - old_weight),
                    old[1].lerp_(factors[1], 1 - old_weight),
                )
            )
        self._bias_of |= new.bias_of
        self.n_updates += 1

    def times(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return H x; zero for parameters that no reference row has reached.

        Args:
            tensors: x by parameter name, in the parameters' shapes.
        """
        if self.kind == "scalar":
            return {name: self._scalar * x for name, x in tensors.items()}
        products: dict[str, Tensor] = {}
        for name, x in tensors.items():
            if name in self._diagonal:
                products[name] = self._diagonal[name].to(x.dtype) * x
            elif name in self._factors:
                products |= self._factored_times(name, tensors)
        return {
            name: products[name] if name in products else torch.zeros_like(x)
            for name, x in tensors.items()
        }

    def quadratic(self, tensors: Mapping[str, Tensor]) -> float:
        """Return xᵀ H x."""
        products = self.times(tensors)
        return sum(
            float((x * products[name]).sum(dtype=torch.float64)) for name, x in tensors.items()
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue; tensors are the estimate's own memory."""
        return {
            "kind": self.kind,
            "decay": self.decay,
            "n_updates": self.n_updates,
            "scalar": self._scalar,
            "diagonal": dict(self._diagonal),
            "input_factors": {name: factors[0] for name, factors in self._factors.items()},
            "output_factors": {name: factors[1] for name, factors in self._factors.items()},
            "bias_of": dict(self._bias_of),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateMismatchError: If it was saved with another kind or decay.
        """
        for key in ("kind", "decay"):
            if state.get(key) != getattr(self, key):
                raise StateMismatchError(
                    f"the saved curvature has {key}={state.get(key)!r}, this one "
                    f"{getattr(self, key)!r}"
                )
        self.n_updates = int(state["n_updates"])
        self._scalar = float(state["scalar"])
        self._diagonal = {name: h.clone() for name, h in state["diagonal"].items()}
        self._factors = {
            name: (a.clone(), state["output_factors"][name].clone())
            for name, a in state["input_factors"].items()
        }
        self._bias_of = dict(state["bias_of"])

    def _factored_times(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return B [W | b] A, cut up again; a bias that is not given counts as zero."""
        weight = tensors[name]
        bias_name = self._bias_of.get(name)
        matrix = weight.flatten(1)
        bias = matrix.new_zeros(len(matrix)) if bias_name is None else tensors.get(bias_name)
        bias = matrix.new_zeros(len(matrix)) if bias is None else bias
        a, b = (factor.to(weight.dtype) for factor in self._factors[name])
        product = b @ torch.cat([matrix, bias[:, None]], dim=1) @ a
        found = {name: product[:, :-1].reshape(weight.shape)}
        if bias_name is not None and bias_name in tensors:
            found[bias_name] = product[:, -1]
        return found


def _factors(calls: Sequence[CallRows]) -> tuple[Tensor, Tensor]:
    """Return A and B of one layer, which may have been called several times."""
    positions = [_positions(one) for one in calls]
    inputs = torch.cat([a for a, _ in positions])
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    grads = torch.cat([d for _, d in positions])
    n_rows = sum(len(one.call.inputs) for one in calls)
    return inputs.T @ inputs / len(inputs), n_rows * (grads.T @ grads)


def _blend(tensors: dict[str, Tensor], name: str, new: Tensor, old_weight: float) -> None:
    if name in tensors:
        tensors[name].lerp_(new, 1 - old_weight)
    else:
        tensors[name] = new


def _diagonal(calls: Sequence[CallRows]) -> dict[str, Tensor]:
    """Return n·Σ r² over the rows of one layer, which may have been called several times."""
    total: dict[str, Tensor] = {}
    n_rows = sum(len(one.call.inputs) for one in calls)
    for one in calls:
        for name, squares in _sum_of_squares(one).items():
            total[name] = total[name] + n_rows * squares if name in total else n_rows * squares
    return total


def _sum_of_squares(one: CallRows) -> dict[str, Tensor]:
    call = one.call
    if isinstance(call, LinearCall) and call.is_matrix_product and call.inputs.dim() == 2:
        # The square of a product of two numbers is the product of their squares.
        dtype = compute_dtype(one.output_grads)
        squares = one.output_grads.to(dtype).square()
        found = {}
        if "weight" in call.names:
            inputs = call.inputs[one.rows].to(dtype)
            found[call.names["weight"]] = squares.T @ inputs.square_()
        if "bias" in call.names:
            found[call.names["bias"]] = squares.sum(dim=0)
        return found
    sums: dict[str, Tensor] = {}
    for i in range(len(one.rows)):
        for name, gradient in call.gradients(
            one.rows[i : i + 1], one.output_grads[i : i + 1]
        ).items():
            square = gradient.square()
            sums[name] = sums[name].add_(square) if name in sums else square
    return sums


def _has_factors(one: CallRows) -> bool:
    """Whether the call's layer is a matrix product, also a convolution's, of bearable size."""
    call = one.call
    if not isinstance(call, LinearCall) or "weight" not in call.names:
        return False
    weight = call.arguments["weight"]
    if max(weight.shape[0], weight[0].numel() + 1) > _LARGEST_FACTOR:
        return False
    if call.function is F.conv2d:
        padding = call.arguments.get("padding", 0)
        return call.arguments.get("groups", 1) == 1 and not isinstance(padding, str)
    return call.is_matrix_product


def _positions(one: CallRows) -> tuple[Tensor, Tensor]:
    """Return inputs (N, n_inputs) and output gradients (N, n_outputs) of the matrix product."""
    call, d = one.call, one.output_grads
    assert isinstance(call, LinearCall)
    dtype = compute_dtype(d)
    a, d = call.inputs[one.rows].to(dtype), d.to(dtype)
    if call.function is not F.conv2d:
        return a.flatten(0, -2), d.flatten(0, -2)
    patches = F.unfold(
        a,
        call.arguments["weight"].shape[2:],
        dilation=call.arguments.get("dilation", 1),
        padding=call.arguments.get("padding", 0),
        stride=call.arguments.get("stride", 1),
    )
    return patches.transpose(1, 2).flatten(0, 1), d.flatten(2).transpose(1, 2).flatten(0, 1)
