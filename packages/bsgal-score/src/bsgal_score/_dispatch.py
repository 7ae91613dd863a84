"""Choose the implementation of an operation when it is called."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Literal, get_args

import torch

from ._types import Implementation
from .errors import ImplementationUnavailableError

_logger = logging.getLogger(__name__)


@cache
def triton_is_installed() -> bool:
    """Tell whether Triton can be imported, without importing it."""
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        return False


@cache
def _log_choice(op: str, chosen: str, device: str) -> None:
    _logger.info("%s on %s tensors runs with impl=%r", op, device, chosen)


def choose_implementation(
    op: str, impl: Implementation, device: torch.device
) -> Literal["triton", "torch"]:
    """Resolve `impl` for tensors on `device`; an explicit choice is obeyed or raises.

    Raises:
        ValueError: If `impl` is no implementation.
        ImplementationUnavailableError: If Triton was asked for and cannot run here.
    """
    if impl not in get_args(Implementation):
        raise ValueError(f"`impl` must be one of {get_args(Implementation)}, got {impl!r}")
    if impl == "torch":
        return "torch"
    if impl == "auto":
        chosen: Literal["triton", "torch"] = (
            "triton" if device.type == "cuda" and triton_is_installed() else "torch"
        )
        _log_choice(op, chosen, device.type)
        return chosen
    if not triton_is_installed():
        raise ImplementationUnavailableError(
            f"{op} with impl='triton' needs the package triton, which is not installed; "
            "install it (PyTorch's CUDA and ROCm builds bring it) or use impl='auto'"
        )
    if device.type != "cuda" and not _interpreter_is_on():
        raise ImplementationUnavailableError(
            f"{op} with impl='triton' needs CUDA or ROCm tensors, got tensors on {device}; "
            "move them, use impl='auto', or set TRITON_INTERPRET=1 before the first use to run "
            "the kernel in Triton's (slow) interpreter"
        )
    return "triton"


def _interpreter_is_on() -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    from .kernels.cache_update_dot import _cache_update_dot_kernel

    return isinstance(_cache_update_dot_kernel, InterpretedFunction)
