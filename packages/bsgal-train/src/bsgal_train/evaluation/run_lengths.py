"""Find where equal values follow each other in an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["run_bounds"]


def run_bounds(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where each run of equal values begins, and the length of the whole.

    Args:
        values: (N,), equal ones next to each other.

    Returns:
        int64 (runs + 1,); of no values only a 0.
    """
    if not len(values):
        return np.zeros(1, dtype=np.int64)
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.concatenate([[0], changes, [len(values)]])
