"""Which unit a pasted object belongs to, and a row that is matched to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from bsgal_train.data import TrainingSample
from bsgal_train.detector.row_losses import Rows
from bsgal_train.recipe.modes import Granularity

__all__ = ["Units"]


class Units:
    """What is judged of a step's samples in this process, numbered in their order from 0.

    Args:
        samples: the step's.
        granularity: whether a unit is one pasted object, those of an image, or all of them; the
            batch is one unit of all processes, of which this is the part of one.

    Attributes:
        granularity: as given.
        of_pastes: for each sample the unit of each of its pasted objects.
        groups: for each unit the frequency group of each of its pasted objects.
    """

    def __init__(self, samples: Sequence[TrainingSample], granularity: Granularity) -> None:
        self.granularity = granularity
        firsts = list(accumulate((len(sample.pastes) for sample in samples), initial=0))
        # The unit of an image's first object, and how far from it the next one's is.
        self._first, self._stride, n_units = {
            "batch": ([0] * len(samples), 0, 1),
            "image": (list(range(len(samples))), 0, len(samples)),
            "instance": (firsts[:-1], 1, firsts[-1]),
        }[granularity]
        self.of_pastes = [
            [first + number * self._stride for number in range(len(sample.pastes))]
            for first, sample in zip(self._first, samples, strict=True)
        ]
        self.groups: list[tuple[str, ...]] = [()] * n_units
        for sample, units in zip(samples, self.of_pastes, strict=True):
            for paste, unit in zip(sample.pastes, units, strict=True):
                self.groups[unit] += (paste.frequency,)

    def __len__(self) -> int:
        return len(self.groups)

    def of_rows(self, rows: Rows) -> Tensor:
        """Return the unit of each row that is matched to a pasted object, -1 for others.

        Returns:
            int64 (R,).
        """
        first = torch.tensor(self._first, device=rows.image.device)
        unit = first[rows.image] + rows.source * self._stride
        return torch.where(rows.source >= 0, unit, -1)

    def rejected(self, trains: Sequence[bool]) -> list[set[int]]:
        """Return for each sample which of its pasted objects are left out.

        Args:
            trains: for each unit whether it is trained on.
        """
        return [
            {number for number, unit in enumerate(units) if not trains[unit]}
            for units in self.of_pastes
        ]
