"""Find out before a run begins whether its gradients and their cache fit into memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from bsgal_train.errors import TooLittleMemoryError
from bsgal_train.recipe import Recipe

__all__ = ["available_bytes", "check_memory"]

_GIB = 2**30
# Of a trainable parameter: its gradient, and AdamW's two averages.
_BYTES_OF_STEP = 4 + 2 * 4
_BYTES_OF_CACHE = {"fp32": 4, "bf16": 2}
_WITHOUT_CACHE = ("none", "paste_all", "paste_random", "oracle")


def check_memory(recipe: Recipe, detector: nn.Module, available: int | None) -> None:
    """Refuse a run that cannot fit, with what would.

    What is counted is only what is sure to be needed beside the weights: gradients, the
    optimizer's averages, and the gradient cache with one more gradient to compare it with.
    Activations come on top, so a run that passes may still be too large.

    Args:
        recipe: of the run.
        detector: already in memory.
        available: bytes that this process may still take; None where that is not known.

    Raises:
        TooLittleMemoryError: more is needed than there is.
    """
    if available is None:
        return
    n_trainable = _count(detector, "")
    step = _BYTES_OF_STEP * n_trainable
    cache = _cache_bytes(recipe, detector)
    if step + cache <= available:
        return
    raise TooLittleMemoryError(
        f"this run needs at least {(step + cache) / _GIB:.2f} GiB beside the weights and the "
        f"images: {step / _GIB:.2f} for gradients and AdamW, {cache / _GIB:.2f} for the gradient "
        f"cache of selection.mode={recipe.selection.mode}; a process can take "
        f"{available / _GIB:.2f} GiB. Alternatives: {'; '.join(_alternatives(recipe, cache))}"
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
    if selection.mode in _WITHOUT_CACHE:
        return 0
    if selection.mode == "paper":
        # Of everything, in fp32, as released; and the gradient that is compared with it.
        return 2 * _BYTES_OF_CACHE["fp32"] * _count(detector, "")
    if selection.effective_reference == "own_class":
        return _BYTES_OF_CACHE["fp32"] * _count(detector, "roi_heads.box_predictor", "cls_score.")
    n_cached = _count(detector, "roi_heads.")
    return (_BYTES_OF_CACHE[selection.cache_dtype] + _BYTES_OF_CACHE["fp32"]) * n_cached


def _alternatives(recipe: Recipe, cache: int) -> list[str]:
    selection = recipe.selection
    options = []
    if selection.mode == "paper":
        options.append(
            "selection.mode=batch or instance, which compare gradients of the region heads only"
        )
    elif cache and selection.cache_dtype == "fp32" and selection.effective_reference != "own_class":
        options.append("selection.cache_dtype=bf16, which halves the cache")
    if cache:
        options.append("selection.mode=paste_all, which needs no cache")
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        options.append("fewer --processes on this machine")
    options.append("a smaller detector.backbone")
    return options


def _count(detector: nn.Module, prefix: str, part: str = "") -> int:
    """Count the trainable parameters whose names begin with a prefix and hold a part."""
    return sum(
        parameter.numel()
        for name, parameter in detector.named_parameters()
        if parameter.requires_grad and name.startswith(prefix) and part in name
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
