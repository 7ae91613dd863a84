"""Count the pixels that compressed run lengths describe, of many masks at once.

pycocotools takes run lengths that were cut off for those of a smaller mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bsgal_train.evaluation.run_lengths import run_bounds

__all__ = ["described_pixels"]

# A byte holds five bits of a number, in the characters from this one on.
_FIRST_CHARACTER = 48
_GOES_ON, _IS_NEGATIVE = 0x20, 0x10
# A run length fits into 32 bits.
_MAX_BYTES = 7


def described_pixels(counts: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Return how many pixels, object and background, the run lengths of each mask add up to.

    Args:
        counts: N run lengths as `pycocotools.mask.encode` writes them.

    Returns:
        int64 (N,); -1 where they are malformed: another character, a number that is cut off or too
        large, a negative run length.
    """
    n_bytes = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
    found = np.zeros(len(counts), dtype=np.int64)
    data = np.frombuffer(b"".join(counts), dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if not len(data):
        return found
    owner = np.repeat(np.arange(len(counts)), n_bytes)
    goes_on = (data & _GOES_ON) != 0
    is_end = ~goes_on
    is_end[np.cumsum(n_bytes)[n_bytes > 0] - 1] = True
    ends = np.flatnonzero(is_end)
    starts = np.concatenate([[0], ends[:-1] + 1])
    length = ends - starts + 1
    shift = 5 * np.minimum(np.arange(len(data)) - np.repeat(starts, length), _MAX_BYTES)
    values = np.add.reduceat((data & 0x1F) << shift, starts)
    sign_bit = 5 * np.minimum(length, _MAX_BYTES)
    values -= np.where(data[ends] & _IS_NEGATIVE, np.int64(1) << sign_bit, 0)
    is_bad = np.zeros(len(counts), dtype=bool)
    is_bad[owner[(data < 0) | (data > 0x3F)]] = True
    is_bad[owner[ends[goes_on[ends] | (length > _MAX_BYTES)]]] = True
    for one_owner, lengths in _run_lengths(values, owner[starts]):
        found += np.bincount(one_owner, lengths, minlength=len(counts)).astype(np.int64)
        is_bad[one_owner[lengths < 0]] = True
    return np.where(is_bad, -1, found)


def _run_lengths(
    values: npt.NDArray[np.int64], owner: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return masks and their run lengths: the first of each, the odd ones, the other even ones.

    From the fourth on, what is stored is the difference from the run length two before.
    """
    bounds = run_bounds(owner)
    place = np.arange(len(owner)) - np.repeat(bounds[:-1], np.diff(bounds))
    is_first, is_odd = place == 0, place % 2 == 1
    parts = [(owner[is_first], values[is_first])]
    for chain in (is_odd, ~is_odd & ~is_first):
        own, total = owner[chain], np.cumsum(values[chain])
        begin = run_bounds(own)
        before = np.concatenate([[0], total])[begin[:-1]]
        parts.append((own, total - np.repeat(before, np.diff(begin))))
    return parts
