"""What the processes of one run share; with a single process every function is the identity.

Gradients are averaged by hand, tensor by tensor in the same order everywhere, so that two processes
take the step that one takes on the double batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bsgal_train.errors import LostProcessError

__all__ = [
    "alone",
    "average",
    "average_gradients",
    "broadcast",
    "first_before_others",
    "gather",
    "group",
    "mean",
    "n_processes",
    "rank",
    "share",
    "total",
    "wait_for_all",
]

T = TypeVar("T")

_is_alone: ContextVar[bool] = ContextVar("_is_alone", default=False)

# Small tensors travel together; this bounds the extra memory, and how long one exchange takes.
_MAX_ELEMENTS_TOGETHER = 1 << 22


def n_processes() -> int:
    """Return the number of processes, 1 without torch.distributed."""
    return dist.get_world_size() if _distributed() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if _distributed() else 0


def group() -> dist.ProcessGroup | None:
    """Return the group of all processes, None where there is only one."""
    return dist.group.WORLD if n_processes() > 1 else None


@contextmanager
def alone() -> Iterator[None]:
    """Act inside the block as if there were no other process: nothing is exchanged."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def total(value: float) -> float:
    """Return the sum of a number over all processes."""
    if n_processes() == 1:
        return float(value)
    values = torch.tensor([value], dtype=torch.float64, device=_device())
    with _exchange():
        dist.all_reduce(values)
    return float(values[0])


def mean(value: float) -> float:
    """Return the mean of a number over all processes."""
    return total(value) / n_processes()


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors of one type by their mean over all processes, in place."""
    count = n_processes()
    if count == 1:
        return
    for together in _packed(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in together])
        with _exchange():
            dist.all_reduce(flat)
        flat.div_(count)
        parts = torch.split(flat, [tensor.numel() for tensor in together])
        for tensor, part in zip(together, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace `.grad` of parameters by its mean over all processes.

    A parameter without a gradient counts as zero where another process has one for it.
    """
    if n_processes() == 1:
        return
    listed = list(parameters)
    here = [parameter.grad is not None for parameter in listed]
    anywhere = torch.tensor(here, dtype=torch.int32, device=_device())
    with _exchange():
        dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, needed in zip(listed, anywhere.tolist(), strict=True):
        if needed:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    average(gradients)


def gather(value: Sequence[T]) -> list[list[T]]:
    """Return the lists of all processes, by rank, in every process."""
    if n_processes() == 1:
        return [list(value)]
    lists: list[list[T]] = [[] for _ in range(n_processes())]
    with _exchange():
        dist.all_gather_object(lists, list(value))
    return lists


def broadcast(value: T) -> T:
    """Return the first process's value in every process."""
    if n_processes() == 1:
        return value
    values = [value]
    with _exchange():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all() -> None:
    """Return once every process has come here."""
    if n_processes() > 1:
        with _exchange():
            dist.barrier()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Run a block in the first process, then in the others: what it makes, they find."""
    if rank() != 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def share(n: int) -> range:
    """Return this process's part of 0 .. n - 1: consecutive numbers, shares as equal as can be."""
    count, own = n_processes(), rank()
    return range(n * own // count, n * (own + 1) // count)


def _packed(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    packed: list[Tensor] = []
    n_elements = 0
    for tensor in tensors:
        if packed and n_elements + tensor.numel() > _MAX_ELEMENTS_TOGETHER:
            yield packed
            packed, n_elements = [], 0
        packed.append(tensor)
        n_elements += tensor.numel()
    if packed:
        yield packed


@contextmanager
def _exchange() -> Iterator[None]:
    """Say what it means when the processes cannot reach one another."""
    try:
        yield
    except RuntimeError as error:
        # Its first sentence, without the place in the library's source.
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error).strip()).partition(". ")[0]
        raise LostProcessError(
            f"process {rank()} lost the other processes of this run: one of them has ended, or "
            f"its machine cannot be reached ({reason}); look at what the others printed, then "
            "start the same command again: it goes on from the newest checkpoint"
        ) from error


def _device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _distributed() -> bool:
    return not _is_alone.get() and dist.is_available() and dist.is_initialized()
