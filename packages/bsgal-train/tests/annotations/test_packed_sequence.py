from __future__ import annotations

import multiprocessing
import re
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.annotations.packed_sequence import PackedSequence

SMAPS = Path("/proc/self/smaps_rollup")


def test_packed_sequence_acts_like_a_tuple():
    records = [("a", 1), ("b", 2), ("c", 3)]
    packed = PackedSequence(iter(records))
    assert list(packed) == records
    assert packed[-1] == ("c", 3)
    assert packed[1:] == (("b", 2), ("c", 3))
    with pytest.raises(IndexError):
        packed[3]
    assert list(PackedSequence([])) == []


def private_mb() -> float:
    return sum(int(kb) for kb in re.findall(r"Private_Dirty: +(\d+) kB", SMAPS.read_text())) / 1e3


def report_growth(records: Sequence[Any], answer: Connection) -> None:
    before = private_mb()
    for record in records:
        assert record[0] >= 0
    answer.send(private_mb() - before)


@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc to measure a process's memory")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_that_reads_all_records_copies_none():
    records = [(i, [float(i + j) for j in range(20)]) for i in range(30_000)]
    grown_mb = []
    for kept in (PackedSequence(records), records):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=report_growth, args=(kept, sender)
        )
        process.start()
        grown_mb.append(receiver.recv())
        process.join()
    packed, plain = grown_mb
    # The plain list shows that the measurement sees what it should.
    assert packed < 2 < plain
