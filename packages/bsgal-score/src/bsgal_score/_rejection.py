"""Keep units that were scored out of what an ordinary backward pass learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from ._layer_scores import gradients
from ._pass_scores import ScoredPass
from ._unit_index import IndexedCall
from .errors import UnsupportedLayerError


def reject(scored: ScoredPass, units: Tensor) -> None:
    """Make the next backward passes give units no gradient, as if the loss lacked their terms.

    The gradients of the outputs of the last recorded layers, those with no other behind them on
    the way to the loss, are set to zero in the units' rows. So nothing below learns from them,
    recorded or not; and what other units' losses send through the rejected ones' rows further down
    is left alone.

    Raises:
        UnsupportedLayerError: If the loss reaches something to train on a way that passes by all
            recorded layers: no mask would stop it there.
    """
    if not len(units):
        return
    by_node: dict[Node, list[IndexedCall]] = {}
    for one in scored.calls:
        by_node.setdefault(one.call.edge.node, []).append(one)
    for node in _last_recorded(scored.loss, by_node):
        node.register_prehook(_masking(by_node[node], units))


def subtract(scored: ScoredPass, units: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Take what units gave to `.grad` in a backward pass out of it again.

    Args:
        scored: Of the same loss as the backward pass.
        units: Indices.
        parameters: Those of the cache, by name.

    Raises:
        UnsupportedLayerError: If the loss trains a parameter that is not scored, or in a process
            group of several, whose gradients are mixed already.
        ValueError: If a parameter has no `.grad`.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UnsupportedLayerError(
            "the gradients of several processes cannot be taken apart after the backward pass; "
            "use `reject` before it"
        )
    names = {id(parameters[name]) for name in scored.names}
    others = [leaf for leaf in _leaves(scored.loss) if id(leaf) not in names]
    if others:
        shapes = [tuple(leaf.shape) for leaf in others[:5]]
        raise UnsupportedLayerError(
            f"the loss trains {len(others)} tensors that are not scored, of shapes {shapes}, and "
            "what the units gave to them is not known; score the whole model, or use `reject` "
            "before the backward pass"
        )
    without = [name for name in scored.names if parameters[name].grad is None]
    if without and len(units):
        raise ValueError(
            f"{without[0]!r} has no .grad: call `subtract` after the backward pass of the loss"
        )
    for unit in units.tolist():
        for name, gradient in gradients(scored.reached, unit).items():
            grad = parameters[name].grad
            assert grad is not None
            grad.sub_((gradient * scored.loss_scale).to(grad.dtype))


def _masking(calls: Sequence[IndexedCall], units: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    masks = {one.call.edge.output_nr: (one.call.output_shape, one.mask(units)) for one in calls}

    def mask_rows(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        masked = list(grads)
        for number, (shape, mask) in masks.items():
            grad = masked[number]
            if grad is not None:
                masked[number] = grad.reshape(shape).masked_fill(mask, 0).reshape(grad.shape)
        return tuple(masked)

    return mask_rows


def _last_recorded(loss: Tensor, recorded: Mapping[Node, object]) -> set[Node]:
    """Return the recorded nodes that a way from the loss meets first."""
    found: set[Node] = set()
    seen: set[Node] = set()
    stack = [(get_gradient_edge(loss).node, "the loss")]
    while stack:
        node, user = stack.pop()
        if node in recorded:
            found.add(node)
        elif node not in seen:
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                raise UnsupportedLayerError(
                    f"the loss reaches a tensor to train, of shape {tuple(leaf.shape)}, by {user}, "
                    "past all layers that are scored, so that units cannot be kept out of it; "
                    "score the last layers too, or leave the units' rows out of the loss"
                )
            stack += [(n, node.name()) for n, _ in node.next_functions if n is not None]
    return found


def _leaves(loss: Tensor) -> list[Tensor]:
    """List the tensors whose `.grad` a backward pass of the loss would fill."""
    seen: set[Node] = set()
    leaves = []
    stack = [get_gradient_edge(loss).node]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), torch.Tensor):
            leaves.append(leaf)
        stack += [n for n, _ in node.next_functions if n is not None]
    return leaves
