"""Try other weights on a model without writing into anything that a graph may hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ._recorder import not_recording
from ._restore import random_state, set_random_state


def stepped_copies(
    optimizer: Optimizer, among: Container[Tensor] | None = None
) -> dict[Tensor, Tensor]:
    """Take the optimizer's next step on copies of its parameters, state and settings.

    Args:
        optimizer: Reads the `.grad` of now. Nothing of it is changed; its hooks do not run.
        among: Step on these parameters only; None is all.

    Returns:
        Parameter to its value after the step, for those with `.grad`.
    """
    copies: dict[Tensor, Tensor] = {}
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None and (among is None or parameter in among):
            copies[parameter] = parameter.detach().clone().requires_grad_()
            copies[parameter].grad = parameter.grad
    trial = copy(optimizer)
    trial.param_groups = [
        {**group, "params": [copies[p] for p in group["params"] if p in copies]}
        for group in optimizer.param_groups
    ]
    trial.state = defaultdict(
        dict,
        {
            copies[p]: {key: _copied(value) for key, value in entries.items()}
            for p, entries in optimizer.state.items()
            if p in copies
        },
    )
    trial.step()
    return {parameter: stepped.detach() for parameter, stepped in copies.items()}


@contextmanager
def trying(
    values: Mapping[Tensor, Tensor], optimizer: Optimizer, model: nn.Module | None
) -> Iterator[None]:
    """Let parameters hold other values until the block ends, and put everything back then.

    Parameters point to other memory meanwhile and buffers are replaced by copies, so that a graph
    built before is good for a backward pass after. In the block `.grad` is None, and no scorer
    records. Restored are parameters, `.grad`, buffers, train or eval modes and the global random
    state.

    Args:
        values: Parameter to the value it has in the block.
        optimizer: Whose parameters' `.grad` is set aside.
        model: Likewise, and whose buffers and modes are restored.
    """
    modules = [] if model is None else list(model.modules())
    parameters = {p: None for group in optimizer.param_groups for p in group["params"]}
    parameters |= {p: None for module in modules for p in module.parameters(recurse=False)}
    before = [(p, p.data, p.grad) for p in parameters]
    buffers = [(module, dict(module._buffers)) for module in modules]
    modes = [(module, module.training) for module in modules]
    random = random_state()
    copies = {b: b.detach().clone() for _, own in buffers for b in own.values() if b is not None}
    try:
        for parameter in parameters:
            parameter.grad = None
        for parameter, value in values.items():
            parameter.data = value
        for module, own in buffers:
            module._buffers.update({n: None if b is None else copies[b] for n, b in own.items()})
        with not_recording():
            yield
    finally:
        for parameter, data, grad in before:
            parameter.data, parameter.grad = data, grad
        for module, own in buffers:
            module._buffers.update(own)
        for module, training in modes:
            module.training = training
        set_random_state(random)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)
