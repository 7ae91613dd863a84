"""Find the optimizer whose update is known, below wrappers and subclasses that do not change it."""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

# Of a subclass, these decide what a step does; hyperparameters are read from the groups.
_UPDATE_METHODS = ("step", "_init_group")


def plain_optimizer(optimizer: Optimizer) -> SGD | Adam | AdamW:
    """Return the SGD, Adam or AdamW that takes the steps of an optimizer.

    That is itself, or what it wraps as `.optimizer` (as accelerate's and Lightning's wrappers do)
    if it shows the state and the groups of that as its own. A subclass is taken if it inherits the
    update.

    Raises:
        TypeError: If there is none, or a subclass has an update of its own.
    """
    inner: Any = optimizer
    while _is_transparent(inner):
        inner = inner.optimizer
    for kind in (AdamW, Adam, SGD):
        if isinstance(inner, kind):
            changed = [name for name in _UPDATE_METHODS if _differs(type(inner), kind, name)]
            if not changed:
                return inner
            raise TypeError(
                f"`optimizer` is a {type(inner).__name__}, whose {changed[0]} is not that of "
                f"{kind.__name__}, so that its steps are not known; use the forms 'cosine' or 'dot'"
            )
    raise TypeError(
        f"`optimizer` must be SGD, Adam or AdamW, got {type(inner).__name__}; use the forms "
        "'cosine' or 'dot'"
    )


def _is_transparent(optimizer: Any) -> bool:
    """Whether an optimizer wraps another and keeps nothing of its own, such as slow weights."""
    inner = getattr(optimizer, "optimizer", None)
    return all(
        hasattr(inner, name) and getattr(optimizer, name, None) is getattr(inner, name)
        for name in ("state", "param_groups")
    )


def _differs(own: type, base: type, name: str) -> bool:
    # Torch wraps `step` of every class for its profiler.
    mine, its = getattr(own, name, None), getattr(base, name, None)
    return mine is not its and _unwrapped(mine) is not _unwrapped(its)


def _unwrapped(method: Any) -> Any:
    return None if method is None else inspect.unwrap(method)
