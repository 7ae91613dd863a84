from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from bsgal_train.evaluation.mask_counts import described_pixels


@pytest.mark.parametrize("seed", range(20))
def test_pixels_are_those_of_the_run_lengths_as_pycocotools_writes_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, expected = [], []
    for n_runs in (1, 2, 3, 4, 40, 0, 5):
        runs = rng.integers(0, 10 ** rng.integers(1, 7), n_runs).tolist()
        size = [1, sum(runs)]
        rle = coco_mask.frPyObjects({"size": size, "counts": runs}, *size)
        counts.append(rle["counts"])
        expected.append(sum(runs))
    assert described_pixels(counts).tolist() == expected


@pytest.mark.parametrize(
    "counts",
    [
        # A number that goes on, characters below and above those in use, a negative run, no end.
        b"P",
        b"1\x01",
        b"1z",
        b"O",
        b"o" * 40 + b"0",
    ],
)
def test_malformed_run_lengths_are_told_from_others(counts: bytes) -> None:
    assert described_pixels([b"5", counts, b"6"]).tolist() == [5, -1, 6]


def test_no_mask_has_no_number() -> None:
    assert described_pixels([]).tolist() == []
