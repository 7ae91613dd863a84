"""Let the processes of a training run agree on one cache and one verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import (
    GradientMismatchError,
    NonFiniteGradientError,
    OtherProcessError,
    UnsupportedLayerError,
)

# What a caller may want to handle is the same in all processes, so that all of them handle it.
_PEER_ERRORS = (
    (OtherProcessError, "another process of the group raised, its message says what"),
    (GradientMismatchError, "a gradient of another process does not fit its cache"),
    (UnsupportedLayerError, "another process used a parameter in a way that cannot be scored"),
    (NonFiniteGradientError, "the reference gradient of another process holds NaN or Inf"),
)


@contextmanager
def agreed(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Run a block in every process of `group`; where it raises in one, raise in all of them.

    What can raise belongs into such a block, before anything else is exchanged: the others would
    wait forever for a process that left. Costs 8 bytes; without a group, nothing.

    Raises:
        OtherProcessError: If the block raised in another process; or, where it raised a
            GradientMismatchError, an UnsupportedLayerError or a NonFiniteGradientError, that.
    """
    if group is None:
        yield
        return
    try:
        yield
    except Exception as error:
        kinds = [kind for kind, _ in _PEER_ERRORS]
        _largest(1 + next((i for i, kind in enumerate(kinds) if isinstance(error, kind)), 0), group)
        raise
    if number := _largest(0, group):
        kind, message = _PEER_ERRORS[number - 1]
        raise kind(f"{message}; no cache was changed")


def average(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Replace tensors by their mean over the processes of `group`, in place."""
    n_processes = dist.get_world_size(group)
    for tensor in tensors:
        # Divided first: a half-precision sum of many caches could overflow.
        dist.all_reduce(tensor.div_(n_processes), group=group)


def any_process(flag: bool, group: dist.ProcessGroup) -> bool:
    """Tell every process of `group` whether the flag is set in one of them; 8 bytes."""
    return _largest(int(flag), group) > 0


def averaged_copies(
    tensors: Iterable[Tensor | None], like: Iterable[Tensor], group: dist.ProcessGroup
) -> list[Tensor | None]:
    """Return the means of tensors over the processes of `group`; None counts as zeros.

    Args:
        tensors: One entry per entry of `like`, or None.
        like: Tensors of the shapes and layouts to reduce, the same in all processes.
        group: The processes.
    """
    copies: list[Tensor | None] = []
    for tensor, pattern in zip(tensors, like, strict=True):
        dtype = torch.promote_types(pattern.dtype, torch.float32)
        copy = torch.zeros_like(pattern, dtype=dtype)
        if tensor is not None:
            copy.copy_(tensor)
        average([copy], group)
        copies.append(copy)
    return copies


def unite(rows: Tensor, n_rows: int, group: dist.ProcessGroup) -> Tensor:
    """Return the sorted row indices that at least one process of `group` has; `n_rows` bytes."""
    present = torch.zeros(n_rows, dtype=torch.uint8, device=_device(group))
    present[rows.to(present.device)] = 1
    dist.all_reduce(present, op=dist.ReduceOp.MAX, group=group)
    return present.nonzero().flatten().to(rows.device)


def gathered(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the rows of all processes of `group`, in the order of their ranks.

    Args:
        rows: (n_rows, width) on a CPU; `n_rows` may differ between processes.
        group: The processes.
    """
    device, n_processes = _device(group), dist.get_world_size(group)
    n_rows = torch.tensor([len(rows)], dtype=torch.int64, device=device)
    counts = [torch.zeros_like(n_rows) for _ in range(n_processes)]
    dist.all_gather(counts, n_rows, group=group)
    padded = rows.new_zeros((max(map(int, counts)), rows.shape[1]), device=device)
    padded[: len(rows)] = rows.to(device)
    parts = [torch.zeros_like(padded) for _ in range(n_processes)]
    dist.all_gather(parts, padded, group=group)
    kept = [part[: int(count)] for part, count in zip(parts, counts, strict=True)]
    return torch.cat(kept).to(rows.device)


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


def joint_sketched_contribution(
    cache_sketch: Tensor,
    candidate_sketch: Tensor | None,
    form: Literal["cosine", "dot"] = "cosine",
    group: dist.ProcessGroup | None = None,
) -> float | None:
    """Return one contribution of all processes' candidates to all processes' references.

    For processes that each keep a cache of their own: sketches are linear, so the mean of theirs is
    the sketch of the mean cache, and likewise for candidates. The estimate of ⟨c̄, k̄⟩, or of its
    cosine, holds the products of one process's cache with another's candidate, which no mean of
    their own contributions does, at the price of two sketches instead of a cache: 8 bytes times
    the width of a sketch, and 8 more, cross the network. Every process has to call it, and all get
    the same.

    Args:
        cache_sketch: From `GradientCache.update_and_sketch` or `CountSketch.sketch`, (width,).
        candidate_sketch: This process's candidate gradient, by the same sketcher; None is zero.
        form: `"cosine"` or `"dot"`; the error of an estimate is `CountSketch.error_bound`.
        group: The processes; None means all.

    Returns:
        The contribution; None if a side is zero everywhere (no evidence), NaN if not finite.

    Raises:
        ValueError: If the two sketches have different shapes, or `form` is another.
        OtherProcessError: If that is so in another process.
        RuntimeError: If torch.distributed is not initialised.
    """
    chosen = dist.group.WORLD if group is None else group
    with agreed(chosen):
        if form not in ("cosine", "dot"):
            raise ValueError(f"`form` must be 'cosine' or 'dot', got {form!r}")
        if candidate_sketch is not None and candidate_sketch.shape != cache_sketch.shape:
            raise ValueError(
                f"`candidate_sketch` must have the shape {tuple(cache_sketch.shape)} of "
                f"`cache_sketch`, got {tuple(candidate_sketch.shape)}"
            )
    if chosen is None:
        raise RuntimeError("call torch.distributed.init_process_group first")
    if candidate_sketch is None:
        candidate_sketch = torch.zeros_like(cache_sketch)
    both = torch.stack([cache_sketch.float(), candidate_sketch.float()]).to(_device(chosen))
    average([both], chosen)
    c, k = both.double().unbind()
    dot, c_norm, k_norm = float(c @ k), float(c.norm()), float(k.norm())
    if not (math.isfinite(dot) and math.isfinite(c_norm) and math.isfinite(k_norm)):
        return math.nan
    if c_norm == 0 or k_norm == 0:
        return None
    return dot if form == "dot" else max(-1.0, min(1.0, dot / (c_norm * k_norm)))


def _largest(number: int, group: dist.ProcessGroup) -> int:
    """Return the largest of the processes' numbers; 8 bytes."""
    numbers = torch.tensor([number], dtype=torch.int64, device=_device(group))
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=group)
    return int(numbers)


def _device(group: dist.ProcessGroup) -> torch.device:
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
