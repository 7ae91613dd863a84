"""Choose the implementation of an operation when it is called."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Literal, get_args

import torch
from torch.torch_version import TorchVersion

from ._types import Implementation
from .errors import ImplementationUnavailableError

_logger = logging.getLogger(__name__)

# Before 3.0 (PyTorch 2.4), products are TF32 or not, without a third choice, and `sqrt_rn` and
# `div_rn` are missing; 3.0 and 3.1 do not compile pointers to a dtype that is an argument.
_OLDEST_TRITON = "3.2"


@cache
def triton_is_installed() -> bool:
    """Tell whether Triton can be imported, without importing it."""
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        return False


def why_not_triton() -> str | None:
    """Say what is wrong with the installed Triton, which is imported; None if it will do."""
    if not triton_is_installed():
        return "is not installed"
    import triton

    if TorchVersion(triton.__version__) < _OLDEST_TRITON:
        return f"is of version {triton.__version__}"
    return None


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
            "triton" if device.type == "cuda" and why_not_triton() is None else "torch"
        )
        _log_choice(op, chosen, device.type)
        return chosen
    if reason := why_not_triton():
        raise ImplementationUnavailableError(
            f"{op} with impl='triton' needs the package triton, which {reason}; install "
            f"triton>={_OLDEST_TRITON} (the CUDA and ROCm builds of PyTorch 2.6 and later bring "
            "it) or use impl='auto'"
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
