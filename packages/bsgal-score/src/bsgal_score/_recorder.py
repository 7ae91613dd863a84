"""Record the calls in which parameters take part, while a forward pass runs."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._broadcast_calls import BROADCASTS, BroadcastCall
from ._exact_calls import ExactCall, exact_call
from ._graph import Place, unrecorded_uses
from ._linear_maps import LINEAR_MAPS, LinearCall, why_unsupported

Call = LinearCall | ExactCall | BroadcastCall

_recording: list[Recorder] = []
"""Those between `start` and `stop`."""


class Recorder(TorchFunctionMode):
    """Note every torch function that takes one of some parameters and returns something to train.

    Watching functions, not modules, sees a layer that wraps its convolution in a normalisation and
    an activation, a module that is called several times, and what a use that cannot be scored is
    called. Whether all uses were seen is for autograd to say: see `unrecorded`.

    Args:
        parameters: Name in the cache to parameter.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._parameters = dict(parameters)
        self._names: dict[int, str] = {}
        self.active = False
        self.calls: list[Call] = []
        self.n_unwatched = 0
        """Calls of linear maps none of whose parameters is watched."""
        self._inside: list[frozenset[str]] = []
        """Parameters of the modules that are running and will be recorded as a whole."""
        self._reasons: dict[str, str] = {}
        self._callers: dict[str, set[CodeType]] = defaultdict(set)
        """Parameter name to the code that was running when a function took it."""

    def start(self) -> None:
        """Forget what was recorded, find the parameters where they are now, and record.

        Parameters are known by their `id`, which is another in a copy of this object.
        """
        self.forget()
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self.active = True
        _recording.append(self)
        self.__enter__()  # type: ignore[no-untyped-call]  # torch's

    def stop(self) -> None:
        """End what `start` began; what was recorded stays until it is forgotten."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's
        _recording.remove(self)
        self.active = False

    def forget(self) -> None:
        """Let go of what was recorded."""
        self.calls.clear()
        self.n_unwatched = 0
        self._inside.clear()
        self._reasons.clear()
        self._callers.clear()

    @property
    def saw_parameters(self) -> bool:
        """Whether a function took a watched parameter, recorded or not."""
        return bool(self._callers)

    def unrecorded(self, loss: Tensor) -> dict[str, str]:
        """Return the watched parameters on which a loss depends by more than recorded calls.

        Args:
            loss: A tensor that requires grad.

        Returns:
            Parameter name to a description of such a use.
        """
        places = [Place(c.edge, frozenset(c.names.values()), c.sources) for c in self.calls]
        uses = unrecorded_uses(loss, places, self._names)
        found = {
            name: self._reasons.get(name, f"it is used by {user}, which was not recorded")
            for name, user in uses.users.items()
        }
        for kind in uses.kinds:
            function: Any = getattr(kind, "_forward_cls", None)
            code = getattr(getattr(function, "forward", None), "__code__", None)
            for name, callers in self._callers.items():
                if code in callers:
                    # Autograd sees one node, whose backward pass does what it likes.
                    found[name] = (
                        f"it is used inside {function.__name__}, an autograd.Function (a "
                        "checkpoint needs use_reentrant=False)"
                    )
        return found

    def enter_module(self, names: Iterable[str]) -> None:
        """Leave out some parameters until `leave_module`: their module is recorded as a whole."""
        self._inside.append(frozenset(names))

    def leave_module(self) -> None:
        """End what `enter_module` began."""
        self._inside.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        if self.active:
            names = frozenset(
                self._names[id(leaf)]
                for leaf in _leaves((*args, *kwargs.values()))
                if id(leaf) in self._names
            )
            names = names.difference(*self._inside)
            if names:
                self._note(func, args, kwargs, outputs, names)
            elif func in LINEAR_MAPS and outputs.requires_grad and not self._inside:
                self.n_unwatched += 1
        return outputs

    def _note(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Any,
        used: frozenset[str],
    ) -> None:
        callers = set(_running(sys._getframe()))
        for name in used:
            self._callers[name] |= callers
        if not any(isinstance(one, Tensor) and one.requires_grad for one in _leaves([outputs])):
            return
        reason: str | None = f"it is used by {_name(function)}"
        if function in LINEAR_MAPS:
            arguments = dict(zip(LINEAR_MAPS[function], args, strict=False)) | dict(kwargs)
            reason = why_unsupported(function, arguments)
            names = {
                role: self._names[id(arguments[role])]
                for role in ("weight", "bias")
                if self._names.get(id(arguments.get(role))) in used
            }
            if reason is None and names:
                self.calls.append(LinearCall.of(function, arguments, names, outputs))
            if reason is None and len(names) < len(used):
                reason = f"it is an input of {function.__name__}"
                used = used.difference(names.values())
        elif function in BROADCASTS and len(used) == 1:
            (name,) = used
            found = BroadcastCall.of(function, args, kwargs, outputs, name, self._parameters[name])
            if isinstance(found, BroadcastCall):
                self.calls.append(found)
                return
            reason = found
        if reason is not None:
            for name in used:
                self._reasons.setdefault(name, reason)


def without_parameters(calls: Iterable[Call], names: Container[str]) -> list[Call]:
    """Return recorded calls less some parameters; calls with no other are left out."""
    kept = (
        replace(call, names={role: name for role, name in call.names.items() if name not in names})
        for call in calls
    )
    return [call for call in kept if call.names]


@contextmanager
def not_recording() -> Iterator[None]:
    """Run a block that is no part of any forward pass being recorded."""
    paused = [one for one in _recording if one.active]
    for one in paused:
        one.active = False
    try:
        yield
    finally:
        for one in paused:
            one.active = True


def _leaves(values: Iterable[Any]) -> Iterable[Any]:
    """Yield the values, and those in a list or tuple among them."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _running(frame: FrameType | None) -> Iterable[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _name(function: Callable[..., Any]) -> str:
    """Name a torch function; an attribute of a tensor is read by a `__get__` without a name."""
    name: str = getattr(function, "__name__", str(function))
    return getattr(getattr(function, "__self__", None), "__name__", name) if "__" in name else name


def record_module(
    recorder: Recorder, module: torch.nn.Module, names: Mapping[str, str]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Record the calls of one module for exact scoring, until the handles are removed.

    Args:
        recorder: Where to put them.
        module: Maps rows to rows; see `layout_of`.
        names: Parameter name in the module to name in the cache.
    """

    def before(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        recorder.enter_module(names.values())

    def after(
        module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> Any:
        recorder.leave_module()
        if not recorder.active:
            return None
        call, replaced = exact_call(module, args, kwargs, outputs, names)
        if call is None:
            return None
        recorder.calls.append(call)
        return replaced

    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, with_kwargs=True),
    ]
