"""Calls of functions that are linear in their parameters: what ghost scoring understands.

Such a call z = f(x; W, b) gives a unit's rows r the gradient Σ_r ∂⟨δ_r, f(x_r; W, b)⟩/∂(W, b). For
any tensors C in the place of the parameters, its dot product with C is Σ_r ⟨δ_r, f(x_r; C)⟩: one
more forward call, and no gradient is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.nn import functional as F  # noqa: N812 - its usual name

from ._graph import output_edge, sources_of
from .eager.ghost import compute_dtype
from .errors import ChangedInputError

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED_CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_OVER_FEATURES = (F.layer_norm, F.rms_norm)
_NORMALISATIONS = (F.group_norm, F.batch_norm, *_OVER_FEATURES)

LINEAR_MAPS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv3d: _CONVOLUTION,
    F.conv_transpose1d: _TRANSPOSED,
    F.conv_transpose2d: _TRANSPOSED,
    F.conv_transpose3d: _TRANSPOSED,
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.batch_norm: (
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
    ),
    F.embedding: (
        "input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
    ),
}  # fmt: skip
"""Function to the names of its positional arguments; the first axis of `input` is that of rows."""


def why_unsupported(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Say why a call of one of `LINEAR_MAPS` cannot be scored row by row; None if it can."""
    if function is F.batch_norm and (
        arguments.get("training", False) or arguments.get("running_mean") is None
    ):
        return "batch normalisation with live statistics mixes the rows of different units"
    if function is F.embedding and arguments.get("max_norm") is not None:
        return "an embedding with max_norm changes its weights in the forward pass"
    if function is F.embedding and arguments.get("scale_grad_by_freq"):
        return "an embedding with scale_grad_by_freq mixes the rows of different units"
    return None


def rows_first(tensor: Tensor, axes: range) -> Tensor:
    """Move neighbouring axes to the front, and make one of them; a view where that is possible."""
    if axes == range(1):
        return tensor
    return tensor.movedim(tuple(axes), tuple(range(len(axes)))).flatten(0, len(axes) - 1)


def exact_convolutions() -> AbstractContextManager[None]:
    """Let cuDNN convolve in full precision and reproducibly in a block, forward and backward.

    Scores are compared with thresholds, and TF32 is cuDNN's default.
    """
    cudnn = torch.backends.cudnn
    block: AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled, deterministic=True, allow_tf32=False
    )
    return block


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to in place; None if nobody counts."""
    return None if tensor.is_inference() else tensor._version


def check_version(tensor: Tensor, version: int | None, names: Iterable[str]) -> None:
    """Raise if a call's input was written to since its version was taken.

    Autograd notices it only where the backward pass needs the input itself; under autocast it keeps
    a copy of lower precision.

    Raises:
        ChangedInputError: Naming the call's parameters.
    """
    if version is not None and version_of(tensor) != version:
        raise ChangedInputError(
            f"the input, of shape {tuple(tensor.shape)}, of the layer with {sorted(names)} was "
            "changed in place after the call, so that its gradients cannot be computed; use an "
            "out-of-place operation there (x = x + y for x += y, inplace=False)"
        )


@dataclass(frozen=True)
class LinearCall:
    """One recorded call of a function that is linear in its parameters."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    """Arguments by name; tensors are detached, parameters are those of the call."""
    names: dict[str, str]
    """Role ("weight" or "bias") to name in the cache, for the parameters that are scored."""
    edge: GradientEdge
    """Where the gradient of the loss in the output is taken."""
    output_shape: tuple[int, ...] = ()
    sources: frozenset[Node] = frozenset()
    """Where what the call took, but for the scored parameters, comes from in the graph."""
    version: int | None = None
    """Of the input when the call was made; None if the input plays no part in the gradient."""

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        names: Mapping[str, str],
        outputs: Tensor,
    ) -> LinearCall:
        """Record a call that has just been made; `arguments` are those by name."""
        others = [value for role, value in arguments.items() if role not in names]
        return cls(
            function,
            {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()},
            dict(names),
            output_edge(outputs),
            outputs.shape,
            sources_of(others),
            version_of(arguments["input"]) if "weight" in names else None,
        )

    @property
    def inputs(self) -> Tensor:
        """The input, whose first axis is that of the rows."""
        inputs: Tensor = self.arguments["input"]
        return inputs

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Lengths of the axes that may be that of the rows; empty without such an axis."""
        shape = tuple(self.inputs.shape)
        if self.function is F.linear:
            return shape[:-1]
        if self.function in _OVER_FEATURES:
            return shape[: len(shape) - len(self.arguments["normalized_shape"])]
        if self.function is F.embedding:
            return shape
        if self.is_convolution and self.inputs.dim() < self.arguments["weight"].dim():
            # Not batched: it begins with the channels.
            return ()
        return shape[:1]

    def with_rows_first(self, axes: range) -> LinearCall:
        """Return the call with some axes of the input, of `row_lengths`, as its first one."""
        if axes == range(1):
            return self
        return replace(self, arguments={**self.arguments, "input": rows_first(self.inputs, axes)})

    def check_input(self) -> None:
        """Raise `ChangedInputError` if the input was written to since the call."""
        check_version(self.inputs, self.version, self.names.values())

    @property
    def is_matrix_product(self) -> bool:
        """Whether this is z = W a, for which `ops.ghost_dot` and `ops.ghost_sqnorm` are made."""
        return self.function is F.linear

    @property
    def is_convolution(self) -> bool:
        """Whether this is a convolution, transposed or not."""
        return self.function in _CONVOLUTIONS + _TRANSPOSED_CONVOLUTIONS

    @property
    def is_normalisation(self) -> bool:
        """Whether this scales and shifts a normalised input."""
        return self.function in _NORMALISATIONS

    def row_dots(
        self, directions: Mapping[str, Tensor], rows: Tensor, output_grads: Tensor
    ) -> Tensor:
        """Return ⟨δ_r, f(x_r; C)⟩ for each row: its gradient's dot product with the directions C.

        Args:
            directions: C by name in the cache.
            rows: Indices of the rows.
            output_grads: δ of those rows.
        """
        dtype = compute_dtype(output_grads)
        parameters: dict[str, Tensor | None] = {}
        for role in ("weight", "bias"):
            like = self.arguments.get(role)
            if role in self.names:
                parameters[role] = directions[self.names[role]].to(dtype)
            elif like is not None:
                # Not scored, so its direction is zero.
                parameters[role] = torch.zeros_like(like, dtype=dtype)
        outputs = self._call(rows, parameters, dtype)
        products = outputs.mul_(self._counted(rows, output_grads).to(dtype))
        return products.flatten(1).sum(dim=1, dtype=torch.float64)

    def gradients(self, rows: Tensor, output_grads: Tensor) -> dict[str, Tensor]:
        """Return the gradient that some rows give to the scored parameters, by name in the cache.

        Arguments as in `row_dots`.
        """
        dtype = compute_dtype(output_grads)
        if self.is_matrix_product:
            d = output_grads.flatten(0, -2).to(dtype)
            found = {}
            if "weight" in self.names:
                a = self.inputs[rows].flatten(0, -2).to(dtype)
                found[self.names["weight"]] = d.T @ a
            if "bias" in self.names:
                found[self.names["bias"]] = d.sum(dim=0)
            return found
        with torch.enable_grad(), exact_convolutions():
            parameters = {
                role: self.arguments[role].detach().to(dtype).requires_grad_(role in self.names)
                for role in ("weight", "bias")
                if self.arguments.get(role) is not None
            }
            outputs = self._function(rows, parameters, dtype)
            gradients = torch.autograd.grad(
                outputs, [parameters[role] for role in self.names], output_grads.to(dtype)
            )
        return dict(zip(self.names.values(), gradients, strict=True))

    def row_gradients(self, rows: Tensor, output_grads: Tensor) -> dict[str, Tensor]:
        """Return gradients row by row, (rows, ...), of what is no larger than an activation.

        That is, of a normalisation's weight and bias and of a convolution's bias.
        """
        dtype = compute_dtype(output_grads)
        d = output_grads.to(dtype)
        found = {}
        if "weight" in self.names and self.is_normalisation:
            without: dict[str, Tensor | None] = {
                role: None for role in ("weight", "bias") if role in self.arguments
            }
            normalised = self._call(rows, without, dtype)
            found[self.names["weight"]] = self._sum_over_positions(normalised.mul_(d))
        if "bias" in self.names:
            found[self.names["bias"]] = self._sum_over_positions(d)
        return found

    def _sum_over_positions(self, outputs: Tensor) -> Tensor:
        """Sum all axes but the first and those of the weight or bias."""
        if self.function in _OVER_FEATURES:
            positions = range(1, outputs.dim() - len(self.arguments["normalized_shape"]))
            return outputs.sum(dim=tuple(positions)) if positions else outputs
        return outputs.flatten(2).sum(dim=2) if outputs.dim() > 2 else outputs

    def unfolded_size(self, output_grads: Tensor) -> int | None:
        """Return how many elements `unfold` makes of one row; None if it cannot."""
        if self.inputs.dim() not in (3, 4):
            return None
        narrow, wide = self._narrow_and_wide(self.inputs, output_grads)
        kernel, options = self._window()
        n_positions = 1
        for length, k, stride, dilation, (before, after) in zip(
            wide.shape[2:], kernel, *options, strict=True
        ):
            n_positions *= (length + before + after - dilation * (k - 1) - 1) // stride + 1
        if n_positions != math.prod(narrow.shape[2:]):
            return None
        return n_positions * (narrow.shape[1] + wide.shape[1] * math.prod(kernel))

    def unfold(self, rows: Tensor, output_grads: Tensor) -> tuple[Tensor, Tensor]:
        """Write a convolution of one or two axes as a matrix product over positions.

        Returns:
            Two tensors (rows, groups, positions, columns). The gradient of the weight is, group by
            group, the sum over rows and positions of their outer products. A transposed convolution
            has the same form with input and output exchanged.
        """
        dtype = compute_dtype(output_grads)
        narrow, wide = self._narrow_and_wide(self.inputs[rows].to(dtype), output_grads.to(dtype))
        kernel, (stride, dilation, padding) = self._window()
        wide = F.pad(wide, [n for pair in reversed(padding) for n in pair])
        if wide.dim() == 3:
            wide = wide[:, :, None]
            kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
        windows = F.unfold(wide, kernel, dilation=dilation, stride=stride)
        groups = self.arguments.get("groups", 1)
        shape = (len(rows), groups, -1, windows.shape[2])
        return windows.view(shape).mT, narrow.reshape(shape).mT

    def _narrow_and_wide(self, inputs: Tensor, output_grads: Tensor) -> tuple[Tensor, Tensor]:
        """Tell apart what has one entry per window from what the windows move over."""
        if self.function in _CONVOLUTIONS:
            return output_grads, inputs
        return inputs, output_grads

    def _window(
        self,
    ) -> tuple[
        tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]
    ]:
        """Return kernel size, and stride, dilation and padding (before, after), axis by axis."""
        kernel = tuple(self.arguments["weight"].shape[2:])

        def per_axis(name: str, default: int) -> tuple[int, ...]:
            value = self.arguments.get(name, default)
            if isinstance(value, int):
                return (value,) * len(kernel)
            return tuple(value) * (len(kernel) if len(value) == 1 else 1)

        dilation = per_axis("dilation", 1)
        if self.arguments.get("padding") == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in totals)
        elif self.arguments.get("padding") == "valid":
            padding = ((0, 0),) * len(kernel)
        else:
            padding = tuple((n, n) for n in per_axis("padding", 0))
        return kernel, (per_axis("stride", 1), dilation, padding)

    def _call(
        self, rows: Tensor, parameters: Mapping[str, Tensor | None], dtype: torch.dtype
    ) -> Tensor:
        with exact_convolutions():
            return self._function(rows, parameters, dtype)

    def _function(
        self, rows: Tensor, parameters: Mapping[str, Tensor | None], dtype: torch.dtype
    ) -> Tensor:
        given = {**self.arguments, **parameters, "input": self.inputs[rows]}
        outputs: Tensor = self.function(
            **{name: widened(value, dtype) for name, value in given.items()}
        )
        return outputs

    def _counted(self, rows: Tensor, output_grads: Tensor) -> Tensor:
        """Drop what autograd drops: the padding entry of an embedding gets no gradient."""
        padding = self.arguments.get("padding_idx")
        if self.function is not F.embedding or padding is None:
            return output_grads
        is_padding = self.inputs[rows] == padding % len(self.arguments["weight"])
        return output_grads.masked_fill(is_padding[..., None], 0)


def widened(value: Any, dtype: torch.dtype) -> Any:
    """Return a floating-point tensor in the dtype, and anything else as it is."""
    is_floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_floating else value
