"""Means and counts of very many units in few bytes: sorted NumPy columns under 64-bit hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows that came last are kept apart up to this many: inserting one moves so few bytes.
_N_RECENT = 1 << 15


def hash_ids(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return 64 bits of BLAKE2 of every id, the same on every machine, (n,).

    Two of n ids share a hash with a probability of about n²/2⁶⁵: 4e-8 for 1.2 million.
    """
    digests = [hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


class HashedTable:
    """A row of evidence per unit, found by the hash of its id.

    A row takes 14 bytes and 5 per source. Rows are sorted by hash, in a large part and a small one
    of recent rows that is merged into it now and then, so that a new unit does not move all others.

    Args:
        n_sources: Number of means per row.
    """

    def __init__(self, n_sources: int) -> None:
        self._types: dict[str, tuple[type, tuple[int, ...]]] = {
            "hashes": (np.uint64, ()),
            "classes": (np.int32, ()),
            "looks": (np.uint16, ()),
            "counts": (np.uint8, (n_sources,)),
            "means": (np.float32, (n_sources,)),
        }
        self._parts = [self._rows(0), self._rows(0)]

    def __len__(self) -> int:
        return sum(len(part["hashes"]) for part in self._parts)

    def find(self, hashes: NDArray[np.uint64]) -> dict[str, NDArray[Any]]:
        """Copy the rows of units, in their order; units without a row get zeros, class -1."""
        rows = self._rows(len(hashes))
        rows["hashes"][:] = hashes
        rows["classes"][:] = -1
        for part in self._parts:
            here, positions = _locate(part["hashes"], hashes)
            for name, column in part.items():
                rows[name][here] = column[positions]
        return rows

    def put(self, rows: dict[str, NDArray[Any]]) -> None:
        """Write the rows of units, none of which may be there twice; new ones are inserted."""
        new = np.ones(len(rows["hashes"]), dtype=bool)
        for part in self._parts:
            here, positions = _locate(part["hashes"], rows["hashes"])
            for name, column in part.items():
                column[positions] = rows[name][here]
            new[here] = False
        self._insert(1, {name: column[new] for name, column in rows.items()})
        if len(self._parts[1]["hashes"]) > _N_RECENT:
            self._merge()

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns, sorted by hash; they are the table's own until it is written to."""
        self._merge()
        return self._parts[0]

    def load_columns(self, columns: dict[str, NDArray[Any]]) -> None:
        """Take a copy of columns that `columns` returned."""
        part: dict[str, NDArray[Any]] = {
            name: columns[name].astype(dtype) for name, (dtype, _) in self._types.items()
        }
        self._parts = [part, self._rows(0)]

    def _merge(self) -> None:
        recent, self._parts[1] = self._parts[1], self._rows(0)
        self._insert(0, recent)

    def _insert(self, number: int, rows: dict[str, NDArray[Any]]) -> None:
        part = self._parts[number]
        hashes = np.concatenate([part["hashes"], rows["hashes"]])
        order = np.argsort(hashes, kind="stable")
        # Column by column, so that no more than one of them is there twice.
        for name in self._types:
            part[name] = np.concatenate([part[name], rows[name]])[order]

    def _rows(self, n: int) -> dict[str, NDArray[Any]]:
        return {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in self._types.items()}


def _locate(
    sorted_hashes: NDArray[np.uint64], hashes: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which of `hashes` are there, and where."""
    positions = np.searchsorted(sorted_hashes, hashes)
    positions[positions == len(sorted_hashes)] = 0
    found = np.zeros(len(hashes), dtype=bool)
    if len(sorted_hashes):
        found = sorted_hashes[positions] == hashes
    return np.flatnonzero(found), positions[found]
