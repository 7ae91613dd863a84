"""The looks of a step: checked, gathered from all processes, and put into one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ._distributed import agreed, gathered
from ._hashed_table import hash_ids

# Real and generated units may have the same ids.
_REAL = np.uint64(0x9E3779B97F4A7C15)


class Source(NamedTuple):
    """One kind of evidence about a unit, for example its loss.

    Only the order of its values counts: any increasing function of them says the same.
    """

    name: str
    bad: Literal["low", "high"]
    """Which values speak against a unit: `"low"` for a similarity, `"high"` for a loss."""
    shrinkage: float | None = None
    """How many real units the group weighs as much as, against those of a class; None: the book's.
    A similarity to the class itself, as of `Prototypes`, wants a large one, 100: it is the same for
    all classes already, and that of two real units is one number seen twice."""


def unit_hashes(ids: Sequence[str], is_real: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return the hashes of units, other ones for real units than for generated ones, (n,)."""
    return hash_ids(ids) ^ np.where(is_real, _REAL, np.uint64(0))


@dataclass(frozen=True)
class Looks:
    """Looks of all processes, in an order that depends neither on processes nor on batches."""

    hashes: NDArray[np.uint64]
    """(n,)."""
    classes: NDArray[np.int32]
    """(n,)."""
    is_real: NDArray[np.bool_]
    """(n,)."""
    values: NDArray[np.float32]
    """Large is bad, NaN is none, (n, n_sources)."""


def gather_looks(
    sources: Sequence[Source],
    n_classes: int,
    ids: Sequence[str],
    classes: Tensor | Sequence[int],
    values: Mapping[str, Tensor | Sequence[float]],
    is_real: Tensor | Sequence[bool],
    group: dist.ProcessGroup | None,
) -> Looks:
    """Check the looks of this process, in all of them before anything is exchanged, and unite."""
    with agreed(group):
        rows = _rows_of(sources, n_classes, ids, classes, values, is_real)
    if group is not None:
        rows = gathered(rows, group)
    columns = rows.numpy()
    values_by_source = np.ascontiguousarray(columns[:, 3:].astype(np.int32)).view(np.float32)
    hashes = columns[:, 0].astype(np.int64).view(np.uint64)
    order = np.lexsort([*values_by_source.T, columns[:, 1], hashes])
    return Looks(
        hashes[order],
        columns[order, 1].astype(np.int32),
        columns[order, 2].astype(bool),
        values_by_source[order],
    )


def _rows_of(
    sources: Sequence[Source],
    n_classes: int,
    ids: Sequence[str],
    classes: Tensor | Sequence[int],
    values: Mapping[str, Tensor | Sequence[float]],
    is_real: Tensor | Sequence[bool],
) -> Tensor:
    """Return int64 (n, 3 + n_sources): hash, class, whether real, and the bits of each value."""
    names = [source.name for source in sources]
    if sorted(values) != sorted(names):
        raise ValueError(f"`values` must hold the sources {sorted(names)}, got {sorted(values)}")
    chosen = torch.as_tensor(classes).detach().cpu().to(torch.int64).reshape(-1)
    real = torch.as_tensor(is_real, dtype=torch.bool).detach().cpu().reshape(-1)
    by_source = {
        name: torch.as_tensor(column).detach().cpu().float().reshape(-1)
        for name, column in values.items()
    }
    for what, column in {"classes": chosen, "is_real": real, **by_source}.items():
        if len(column) != len(ids):
            raise ValueError(f"`ids` has {len(ids)} units, {what} has {len(column)}")
    outside = torch.nonzero((chosen < 0) | (chosen >= n_classes)).flatten().tolist()
    if outside:
        raise ValueError(
            f"`classes` must lie in [0, {n_classes}), got {int(chosen[outside[0]])} "
            f"for {ids[outside[0]]!r}"
        )
    for name, column in by_source.items():
        bad = torch.nonzero(column.isinf()).flatten().tolist()
        if bad:
            raise ValueError(
                f"the values of {name!r} must be finite, or NaN for none, got "
                f"{float(column[bad[0]])} for {ids[bad[0]]!r}"
            )
    signed = [
        by_source[source.name] if source.bad == "high" else -by_source[source.name]
        for source in sources
    ]
    # Equal values, and all NaN, have equal bits: adding 0 makes -0.0 to 0.0.
    bits = [
        torch.where(column.isnan(), torch.nan, column + 0.0).view(torch.int32).to(torch.int64)
        for column in signed
    ]
    hashes = torch.from_numpy(unit_hashes(ids, real.numpy()).view(np.int64))
    return torch.stack([hashes, chosen, real.to(torch.int64), *bits], dim=1)
