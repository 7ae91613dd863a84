"""Lay tensors out as flat views in one common element order, without copies where possible."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import ShardedParameterError


def _strides(tensor: Tensor) -> tuple[int, ...]:
    # The stride of an axis of length 1 says nothing about the order in memory.
    return tuple(
        stride for stride, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1
    )


def is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one stretch of memory, in whatever order of axes."""
    expected = 1
    axes = [
        (stride, length)
        for stride, length in zip(tensor.stride(), tensor.shape, strict=True)
        if length > 1
    ]
    for stride, length in sorted(axes):
        if stride != expected:
            return False
        expected *= length
    return True


def flat(tensor: Tensor) -> Tensor:
    """View a dense tensor as one axis, in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def flat_like(tensor: Tensor, like: Tensor) -> Tensor:
    """View `tensor` as one axis in the memory order of the dense tensor `like`; copy if need be."""
    if tensor.stride() != like.stride() and _strides(tensor) != _strides(like):
        tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
    return flat(tensor)


def check_whole(name: str, parameter: object) -> None:
    """Check that a parameter is no `DTensor`, which only looks like a tensor of its full shape.

    Raises:
        ShardedParameterError: Naming it and how it is placed.
    """
    # Not by its class, whose import takes longer than that of all of this package.
    placements = getattr(parameter, "placements", None)
    if placements is not None:
        raise ShardedParameterError(
            f"parameter {name!r} is a {type(parameter).__name__} with placements {placements}: "
            "sharded by fully_shard (FSDP2) or tensor parallelism, so that no process holds its "
            "whole gradient. Such models cannot be scored; exclude the parameter, or train with "
            "DistributedDataParallel"
        )
