"""What the processes of one run share; with a single process every function is the identity.

Gradients are averaged by hand, tensor by tensor in the same order everywhere, so that two processes
take the step that one takes on the double batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["average", "gather", "group", "mean", "n_processes", "rank", "total"]

T = TypeVar("T")


def n_processes() -> int:
    """Return the number of processes, 1 without torch.distributed."""
    return dist.get_world_size() if _distributed() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if _distributed() else 0


def group() -> dist.ProcessGroup | None:
    """Return the group of all processes, None where there is only one."""
    return dist.group.WORLD if n_processes() > 1 else None


def total(value: float) -> float:
    """Return the sum of a number over all processes."""
    if n_processes() == 1:
        return value
    device = torch.cuda.current_device() if dist.get_backend() == "nccl" else "cpu"
    values = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return float(values[0])


def mean(value: float) -> float:
    """Return the mean of a number over all processes."""
    return total(value) / n_processes()


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in place."""
    count = n_processes()
    if count == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor.div_(count)


def gather(value: Sequence[T]) -> list[list[T]]:
    """Return the lists of all processes, by rank, in every process."""
    if n_processes() == 1:
        return [list(value)]
    lists: list[list[T]] = [[] for _ in range(n_processes())]
    dist.all_gather_object(lists, list(value))
    return lists


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
