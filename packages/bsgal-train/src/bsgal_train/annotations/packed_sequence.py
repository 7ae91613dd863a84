"""A sequence of records in one block of memory."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

Record = TypeVar("Record")


class PackedSequence(Sequence[Record], Generic[Record]):
    """Keep each record serialised in one shared array, and rebuild it when it is asked for.

    A forked loader process that walks over a million Python objects copies their memory, because
    reading an object writes its reference count. It reads this array without copying it. The idea
    is that of detectron2's serialised lists.

    Args:
        records: Anything that can be pickled; consumed once.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        block = bytearray()
        stops: list[int] = []
        for record in records:
            block += pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
            stops.append(len(block))
        self._block: npt.NDArray[np.uint8] = np.frombuffer(block, dtype=np.uint8)
        self._stops = np.array(stops, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._stops)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        position = range(len(self))[index]
        start = int(self._stops[position - 1]) if position else 0
        stop = int(self._stops[position])
        record: Record = pickle.loads(self._block[start:stop].tobytes())
        return record
