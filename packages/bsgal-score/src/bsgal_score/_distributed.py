"""Let the processes of a training run agree on one cache and one verdict."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def average(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Replace tensors by their mean over the processes of `group`, in place."""
    n_processes = dist.get_world_size(group)
    for tensor in tensors:
        # Divided first: a half-precision sum of many caches could overflow.
        dist.all_reduce(tensor.div_(n_processes), group=group)


def any_process(flag: bool, group: dist.ProcessGroup) -> bool:
    """Tell every process of `group` whether the flag is set in one of them; 8 bytes."""
    flags = torch.tensor([float(flag)], dtype=torch.float64, device=_device(group))
    dist.all_reduce(flags, group=group)
    return bool(flags[0] > 0)


def joint_contribution(
    contribution: float | None, group: dist.ProcessGroup | None = None
) -> float | None:
    """Return one contribution for the batches of all processes, the same in each of them.

    The mean over the processes that have evidence; None if none has, NaN or Inf if one is not
    finite. Every process has to call it. 16 bytes cross the network. With equal caches (see
    `GradientCache.all_reduce`) the mean of the form `"dot"` or `"step"` is the contribution of the
    whole batch; the mean of cosines is only their mean.

    Args:
        contribution: What this process found; None is no evidence.
        group: The processes; None means all.

    Raises:
        RuntimeError: If torch.distributed is not initialised.
    """
    chosen = dist.group.WORLD if group is None else group
    if chosen is None:
        raise RuntimeError("call torch.distributed.init_process_group first")
    found = [0.0, 0.0] if contribution is None else [contribution, 1.0]
    sums = torch.tensor(found, dtype=torch.float64, device=_device(chosen))
    dist.all_reduce(sums, group=chosen)
    total, n_found = sums.tolist()
    return total / n_found if n_found else None


def _device(group: dist.ProcessGroup) -> torch.device:
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
