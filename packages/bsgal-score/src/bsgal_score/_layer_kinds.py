"""Which modules' parameters can be scored from what the layers saw, and which in another way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UnsupportedLayerError

OtherLayers = Literal["error", "skip", "exact"]

_SUPPORTED_MODULES = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    _BatchNorm,
)


class BoundParameter(NamedTuple):
    """A parameter that is in the cache, and where it belongs."""

    module: nn.Module
    attribute: str
    """Its name in the module."""
    parameter: Tensor
    name: str
    """Its name in the cache."""


def sort_out_layers(
    bound: Sequence[BoundParameter], other_layers: OtherLayers
) -> tuple[dict[str, Tensor], dict[nn.Module, dict[str, str]], dict[str, str]]:
    """Find the parameters to watch, the modules to score exactly, and what is left out.

    Args:
        bound: The parameters that are in the cache.
        other_layers: As in `GhostScorer`.

    Returns:
        Name to parameter; module to its parameters' names in it and in the cache; and name to what
        kind of module a parameter belongs to.

    Raises:
        UnsupportedLayerError: With `other_layers="error"`, naming all that is left out.
    """
    watched: dict[str, Tensor] = {}
    exact: dict[nn.Module, dict[str, str]] = defaultdict(dict)
    others: dict[str, str] = {}
    # An attention that is not scored reads the weights of its last layer and never calls it.
    uncalled: dict[nn.Module, nn.Module] = {
        module.out_proj: module for module, *_ in bound if isinstance(module, nn.MultiheadAttention)
    }
    for module, attribute, parameter, name in bound:
        owner = uncalled.get(module, module)
        # A module around others may add its own parameters to what they return, or expand them:
        # how it uses them shows when it runs.
        is_around_others = any(True for _ in owner.children())
        if isinstance(owner, _SUPPORTED_MODULES) or (
            is_around_others
            and other_layers != "exact"
            and not isinstance(owner, nn.MultiheadAttention)
        ):
            watched[name] = parameter
        elif other_layers == "exact":
            watched[name] = parameter
            inner = "" if owner is module else _place_in(module, owner)
            exact[owner][f"{inner}{attribute}"] = name
        else:
            others[name] = f"belongs to a {type(owner).__name__}"
    if others and other_layers == "error":
        listed = ", ".join(f"{name!r} {kind}" for name, kind in others.items())
        raise UnsupportedLayerError(
            f"{listed}: such layers cannot be scored row by row; pass other_layers='exact' or "
            "'skip', or exclude them from the cache"
        )
    return watched, dict(exact), others


def _place_in(module: nn.Module, owner: nn.Module) -> str:
    return next(f"{name}." for name, one in owner.named_modules() if one is module)
