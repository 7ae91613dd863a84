"""Make ``import detectron2`` work, whichever build of it is installed.

A build with compiled operators (detectron2's main branch, installed from its repository) is used
as it is. The released v0.6, installed here without its C++ part, needs a few names that today's
libraries have dropped; they exist only while detectron2 is being imported, so that no other
library can mistake them for the real thing.
"""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bsgal_train.errors import (
    Detectron2MissingError,
    Detectron2OperatorError,
)

__all__ = ["SETUP_COMMAND", "ensure_detectron2"]

SETUP_COMMAND = "bsgal-train setup-detectron2"

# These modules take one of the stand-ins, or warn, while they are imported.
_MODULES_IMPORTED_WITH_STAND_INS = (
    "detectron2.data.transforms",
    "detectron2.modeling",
    "detectron2.model_zoo",
)


def ensure_detectron2() -> None:
    """Make ``import detectron2`` and its submodules usable in this process.

    Call it before the first import of detectron2. Calling it again costs nothing. Nothing inside
    detectron2 is changed; a build that has its compiled operators gets no stand-in for them.

    Raises:
        Detectron2MissingError: If detectron2, or something it imports, is not installed.
    """
    if all(name in sys.modules for name in _MODULES_IMPORTED_WITH_STAND_INS):
        return
    spec = importlib.util.find_spec("detectron2")
    # A folder called detectron2 without __init__.py (a clone next to the script) has no origin.
    if spec is None or spec.origin is None:
        raise Detectron2MissingError(
            f"detectron2 is not installed in {sys.prefix}; run `{SETUP_COMMAND}`, or install "
            "detectron2's main branch from its own repository"
        )
    try:
        with _known_warnings_silenced(), _dropped_names_restored():
            detectron2: Any = importlib.import_module("detectron2")
            if importlib.util.find_spec("detectron2._C") is None:
                operators = _MissingOperators("detectron2._C")
                sys.modules["detectron2._C"] = operators
                detectron2._C = operators
            for name in _MODULES_IMPORTED_WITH_STAND_INS:
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Detectron2MissingError(
            f"detectron2 is installed in {Path(spec.origin).parent}, but it needs {error.name}, "
            f"which is not: install that (pip install {error.name})"
        ) from error


class _MissingOperators(types.ModuleType):
    """Stand in for the compiled module: its functions can be looked up, but not called."""

    # importlib.util.find_spec reads it from modules that are already imported.
    __spec__ = importlib.util.spec_from_loader("detectron2._C", loader=None)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing_operator(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise Detectron2OperatorError(
                f"detectron2's compiled operator {name!r} was called, but this detectron2 was "
                "installed without its C++ part (deformable convolution and rotated boxes need "
                "it); install detectron2's main branch from its repository with a compiler"
            )

        return missing_operator


@contextmanager
def _known_warnings_silenced() -> Iterator[None]:
    """Silence the two warnings that detectron2 causes on current PyTorch, and no others."""
    import torch

    with warnings.catch_warnings():
        # fvcore's losses and detectron2's box code are compiled at import.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script")
        # PyTorch says this once per process, at the first anchor grid: let it be said here.
        warnings.filterwarnings("ignore", message=r"torch\.meshgrid")
        torch.meshgrid(torch.zeros(1), torch.zeros(1))
        yield


@contextmanager
def _dropped_names_restored() -> Iterator[None]:
    """Provide ``PIL.Image.LINEAR`` and ``pkg_resources`` where they are gone, for a moment."""
    import PIL.Image

    pillow: Any = PIL.Image
    lacks_linear = not hasattr(pillow, "LINEAR")
    lacks_pkg_resources = importlib.util.find_spec("pkg_resources") is None
    if lacks_linear:
        pillow.LINEAR = PIL.Image.Resampling.BILINEAR
    if lacks_pkg_resources:
        stand_in: Any = types.ModuleType("pkg_resources")
        stand_in.resource_filename = _resource_filename
        sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        if lacks_linear:
            del pillow.LINEAR
        if lacks_pkg_resources:
            del sys.modules["pkg_resources"]


def _resource_filename(package: str, resource: str) -> str:
    """Return the path of a file inside a package."""
    return str(importlib.resources.files(package).joinpath(resource))
