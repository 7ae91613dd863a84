"""Record the calls in which parameters take part, while a forward pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from ._linear_maps import LINEAR_MAPS, ExactCall, LinearCall, why_unsupported

Call = LinearCall | ExactCall


class Recorder(TorchFunctionMode):
    """Note every torch function that takes one of some parameters and returns something to train.

    Watching functions, not modules, sees a layer that wraps its convolution in a normalisation and
    an activation, a module that is called several times, and any use of a parameter that cannot be
    scored. An output's gradient edge is taken at once, so that a later in-place operation on the
    output does no harm.

    Args:
        parameters: Name in the cache to parameter.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self.active = False
        self.calls: list[Call] = []
        self.other_uses: dict[str, str] = {}
        """Parameter name to a description of a use that cannot be scored."""

    def clear(self) -> None:
        """Forget what was recorded."""
        self.calls.clear()
        self.other_uses.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        if self.active and isinstance(outputs, Tensor) and outputs.requires_grad:
            used = [
                self._names[id(leaf)]
                for leaf in _leaves((*args, *kwargs.values()))
                if id(leaf) in self._names
            ]
            if used:
                self._note(func, args, kwargs, outputs, used)
        return outputs

    def _note(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Tensor,
        used: list[str],
    ) -> None:
        if function not in LINEAR_MAPS:
            name = getattr(function, "__name__", str(function))
            self.other_uses.update(dict.fromkeys(used, f"it is used by {name}"))
            return
        arguments = dict(zip(LINEAR_MAPS[function], args, strict=False)) | dict(kwargs)
        reason = why_unsupported(function, arguments)
        names = {
            role: self._names[id(arguments[role])]
            for role in ("weight", "bias")
            if id(arguments.get(role)) in self._names
        }
        if reason is None and len(names) < len(used):
            reason = f"it is an input of {function.__name__}"
        if reason is not None:
            self.other_uses.update(dict.fromkeys(used, reason))
            return
        arguments = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        self.calls.append(LinearCall(function, arguments, names, get_gradient_edge(outputs)))


def _leaves(values: Iterable[Any]) -> Iterable[Any]:
    """Yield the values, and those in a list or tuple among them."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def record_module(
    recorder: Recorder, names: Mapping[str, str]
) -> Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    """Make a forward hook that records the calls of one module for exact scoring.

    Args:
        recorder: Where to put them.
        names: Parameter name in the module to name in the cache.
    """

    def hook(
        module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> None:
        if not recorder.active:
            return
        if not (isinstance(outputs, Tensor) and args and isinstance(args[0], Tensor)):
            raise TypeError(
                f"other_layers='exact' needs modules that map a tensor of rows to a tensor; "
                f"{type(module).__name__} returned {type(outputs).__name__}"
            )
        if outputs.requires_grad:
            detached = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
            edge = get_gradient_edge(outputs)
            recorder.calls.append(ExactCall(module, detached, dict(kwargs), dict(names), edge))

    return hook
