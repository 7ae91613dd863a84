"""Ask autograd how a loss depends on parameters, and where in its graph recorded calls lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge


@dataclass(frozen=True, eq=False)
class Place:
    """Where a recorded call lies in the graph: between its output and its inputs."""

    edge: GradientEdge
    """Of the output."""
    names: frozenset[str]
    """Parameters whose every use in between is recorded."""
    sources: frozenset[Node]
    """Where the inputs come from."""


def output_edge(outputs: Tensor) -> GradientEdge:
    """Return where the gradient of the loss in the output of a call just made is to be taken.

    At once, so that a later in-place operation on the output does no harm. On a view such an
    operation replaces the view in the graph, but not what it is a view of; the gradient there has
    the same elements, in another shape.
    """
    base = outputs._base
    is_whole = (
        base is not None
        and base.requires_grad
        and base.numel() == outputs.numel()
        and base.is_contiguous()
        and outputs.is_contiguous()
    )
    return get_gradient_edge(base if base is not None and is_whole else outputs)


def sources_of(inputs: Iterable[Any]) -> frozenset[Node]:
    """Return where the inputs of a call come from; what needs no gradient is passed over."""
    return frozenset(
        get_gradient_edge(one).node
        for one in inputs
        if isinstance(one, Tensor) and one.requires_grad
    )


@dataclass(frozen=True)
class _Scope:
    """The calls that a path runs inside of."""

    places: frozenset[Place] = frozenset()
    names: frozenset[str] = frozenset()
    ends: frozenset[Node] = frozenset()

    def enter(self, place: Place) -> _Scope:
        return _Scope(self.places | {place}, self.names | place.names, self.ends | place.sources)


@dataclass(frozen=True)
class Uses:
    """How a loss depends on parameters, apart from recorded calls."""

    users: dict[str, str] = field(default_factory=dict)
    """Parameter name to the autograd node that uses it outside of recorded calls."""
    kinds: set[type] = field(default_factory=set)
    """Types of all nodes outside of recorded calls."""


def unrecorded_uses(loss: Tensor, places: Iterable[Place], names: Mapping[int, str]) -> Uses:
    """Walk the graph of a loss, and find uses of parameters outside of recorded calls.

    Nothing is computed; time is linear in the number of nodes.

    Args:
        loss: A tensor that requires grad.
        places: Of the recorded calls, in the order of the calls.
        names: `id` of a parameter to its name.
    """
    found = Uses()
    by_node: dict[Node, list[Place]] = defaultdict(list)
    for place in places:
        by_node[place.edge.node].append(place)
    seen: set[tuple[Node, _Scope]] = set()
    stack = [(get_gradient_edge(loss).node, "the loss", _Scope())]
    while stack:
        node, user, scope = stack.pop()
        if node in scope.ends or (node, scope) in seen:
            continue
        seen.add((node, scope))
        # A module and the last layer in it share their output; the module was recorded later.
        entered = next((p for p in reversed(by_node[node]) if p not in scope.places), None)
        if entered is not None:
            stack += [(source, "a recorded call", scope) for source in entered.sources]
            stack.append((node, user, scope.enter(entered)))
            continue
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None and name not in scope.names:
            found.users.setdefault(name, user)
        found.kinds.add(type(node))
        stack += [(n, node.name(), scope) for n, _ in node.next_functions if n is not None]
    return found
