"""What the processes of a run agree on inside a forward pass of the detector.

Divisors of losses and the classes of a federated loss are those of the whole batch, so processes
exchange numbers in a pass, and all of them have to make it. A pass that only some of them make
keeps to what was agreed on in one that all have made: it exchanges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["agree", "agreed", "keeping_to"]

T = TypeVar("T")

_agreed: ContextVar[dict[str, Any] | None] = ContextVar("_agreed", default=None)
_kept_to: ContextVar[Mapping[str, Any] | None] = ContextVar("_kept_to", default=None)


def agree(name: str, exchange: Callable[[], T]) -> T:
    """Return what all processes agree on; no exchange in a forward pass takes another way.

    Args:
        name: of what is agreed on, once in a pass.
        exchange: asks the other processes, which have to ask too.
    """
    kept_to = _kept_to.get()
    if kept_to is not None:
        kept: T = kept_to[name]
        return kept
    value = exchange()
    noted = _agreed.get()
    if noted is not None:
        noted[name] = value
    return value


@contextmanager
def agreed() -> Iterator[dict[str, Any]]:
    """Fill a mapping with what is agreed on in the pass inside the block."""
    found: dict[str, Any] = {}
    token = _agreed.set(found)
    try:
        yield found
    finally:
        _agreed.reset(token)


@contextmanager
def keeping_to(earlier: Mapping[str, Any]) -> Iterator[None]:
    """Let a pass inside the block, which other processes may not make, ask nobody.

    Args:
        earlier: from `agreed`, of a pass of the same detector.
    """
    token = _kept_to.set(earlier)
    try:
        yield
    finally:
        _kept_to.reset(token)
