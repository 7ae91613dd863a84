"""Find out before a run begins whether its gradients and their cache fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from bsgal_train.engine.weight_average import averaged_tensors
from bsgal_train.errors import TooLittleMemoryError
from bsgal_train.recipe import Recipe
from bsgal_train.selection.scoring.real_gradient import classifiers, head_modules

__all__ = ["available_bytes", "check_memory"]

_GIB = 2**30
# Of a trainable parameter: its gradient, and AdamW's two averages.
_BYTES_OF_STEP = 4 + 2 * 4
_BYTES_OF_CACHE = {"fp32": 4, "bf16": 2}


def check_memory(recipe: Recipe, detector: nn.Module, available: int | None) -> None:
    """Refuse a run that cannot fit, with what would.

    What is counted is only what is sure to be needed beside the weights: gradients, the
    optimizer's averages, the gradient cache with one more gradient to compare it with, and the
    averaged weights with the trained ones beside them, as during evaluation. Activations come on
    top, so a run that passes may still be too large.

    Args:
        recipe: of the run.
        detector: already in memory.
        available: bytes that this process may still take; None where that is not known.

    Raises:
        TooLittleMemoryError: more is needed than there is.
    """
    if available is None:
        return
    cache = _cache_bytes(recipe, detector)
    parts = {
        "gradients and AdamW": _BYTES_OF_STEP * _count([detector]),
        f"the gradient cache of selection.mode={recipe.selection.mode}": cache,
        "the averaged weights, and the trained ones in evaluation": _average_bytes(
            recipe, detector
        ),
    }
    needed = sum(parts.values())
    if needed <= available:
        return
    listed = ", ".join(f"{size / _GIB:.2f} for {what}" for what, size in parts.items() if size)
    raise TooLittleMemoryError(
        f"this run needs at least {needed / _GIB:.2f} GiB beside the weights and the images: "
        f"{listed}; a process can take {available / _GIB:.2f} GiB. Alternatives: "
        + "; ".join(_alternatives(recipe, cache))
    )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory each process of this machine can still take, None if unknown.

    On a GPU its own memory counts, else that of the machine or of the container, shared evenly
    among the processes that this run has on this machine.

    Args:
        root: folder in which `proc` and `sys` are looked for.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    found = [
        number
        for number in (_of_machine(root), _of_container(root / "sys/fs/cgroup"))
        if number is not None
    ]
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if found else None


def _cache_bytes(recipe: Recipe, detector: nn.Module) -> int:
    selection = recipe.selection
    if selection.scores.caches is None:
        return 0
    if selection.scores.caches == "class_rows":
        return _BYTES_OF_CACHE["fp32"] * _count(classifiers(detector))
    if selection.scores.caches == "detector":
        cached: Iterable[nn.Module] = [detector]
    else:
        cached = head_modules(detector, selection.effective_losses, selection.layers).values()
    # The cache, and the gradient that is compared with it.
    n_bytes = _BYTES_OF_CACHE[selection.cache_dtype] + _BYTES_OF_CACHE["fp32"]
    return n_bytes * _count(cached)


def _average_bytes(recipe: Recipe, detector: nn.Module) -> int:
    if not recipe.optimizer.ema_decay:
        return 0
    # `WeightAverage` holds the averages, and while these are in place the trained weights.
    return 2 * sum(tensor.nbytes for tensor in averaged_tensors(detector).values())


def _alternatives(recipe: Recipe, cache: int) -> list[str]:
    selection = recipe.selection
    options = []
    if selection.scores.caches == "detector":
        options.append(
            "selection.mode=batch or instance, which compare the last layers' gradients only"
        )
    elif selection.scores.caches == "heads":
        if selection.layers == "heads":
            options.append("selection.layers=last, which caches the last layers only")
        if selection.cache_dtype == "fp32":
            options.append("selection.cache_dtype=bf16, which halves the cache")
    if cache:
        options.append("selection.mode=paste_all, which needs no cache")
    if recipe.optimizer.ema_decay:
        options.append("optimizer.ema_decay=0, which averages no weights")
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        options.append("fewer --processes on this machine")
    options.append("a smaller detector.backbone")
    return options


def _count(modules: Iterable[nn.Module]) -> int:
    """Count the trainable parameters of some modules."""
    return sum(
        parameter.numel()
        for module in modules
        for parameter in module.parameters()
        if parameter.requires_grad
    )


def _of_machine(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def _of_container(cgroup: Path) -> int | None:
    """Return what a container's limit leaves (version 2 of control groups)."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = (cgroup / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else max(int(limit) - int(used), 0)
