"""What speaks against each instance of a pool, from looks at it and at real objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bsgal_score import EvidenceBook, EvidenceTable, Prototypes, Source
from bsgal_train.selection.scoring.looks import Looks
from bsgal_train.selection.scoring.real_gradient import classifiers

__all__ = ["SOURCES", "InstanceEvidence"]

SOURCES = (
    # Relative to the class already, so that classes are to be shrunk to their group strongly.
    Source("prototype", bad="low", shrinkage=20),
    Source("mask_loss", bad="high"),
)
"""What a look measures, and which values speak against an instance: how little its region feature
is like those of its class's real objects, and how badly its mask can be predicted."""


class InstanceEvidence:
    """Keep what looks have shown of instances and of real objects, and judge by it.

    Args:
        detector: That looks.
        frequencies: Frequency group of every class.
    """

    def __init__(self, detector: nn.Module, frequencies: Sequence[str]) -> None:
        width = classifiers(detector)[0].in_features
        self._prototypes = Prototypes(len(frequencies), width, dtype=torch.float16)
        self._book = EvidenceBook(SOURCES, frequencies)

    def take(self, looks: Looks) -> None:
        """Take the looks of a batch in; objects that no source has a value for are left out.

        They are compared with the real objects of earlier batches.
        """
        values = {"prototype": self._likeness(looks), "mask_loss": looks.losses["mask_loss"]}
        seen = np.asarray(~np.isnan(np.stack(list(values.values()))).all(axis=0))
        self._book.look(
            _chosen(looks.ids, seen),
            looks.classes[seen].tolist(),
            {name: column[seen].tolist() for name, column in values.items()},
            looks.is_real[seen].tolist(),
        )

    def table(self, ids: Sequence[str], *, alpha: float, min_looks: int) -> EvidenceTable:
        """Return the evidence about instances, by the pool's ids, and verdicts.

        Args:
            ids: As in the pool.
            alpha: At most this share of real objects would be rejected, in (0, 1).
            min_looks: With fewer, an instance is uncertain; at least 1.
        """
        return self._book.table(ids, alpha=alpha, min_looks=min_looks)

    def state_dict(self) -> dict[str, Any]:
        """Return all that was seen."""
        return {"book": self._book.state_dict(), "prototypes": self._prototypes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._book.load_state_dict(state["book"])
        self._prototypes.load_state_dict(state["prototypes"])

    def _likeness(self, looks: Looks) -> npt.NDArray[np.float32]:
        """Compare features with the prototypes before the real ones among them are added."""
        seen = np.asarray(~np.isnan(looks.features).all(axis=1))
        real = seen & looks.is_real
        found = np.full(len(looks), np.nan, dtype=np.float32)
        found[seen] = self._prototypes.compare(
            _chosen(looks.ids, seen),
            looks.classes[seen].tolist(),
            torch.from_numpy(looks.features[seen]),
            looks.is_real[seen].tolist(),
        ).numpy()
        self._prototypes.update(
            _chosen(looks.ids, real),
            looks.classes[real].tolist(),
            torch.from_numpy(looks.features[real]),
        )
        return found


def _chosen(ids: Sequence[str], chosen: npt.NDArray[np.bool_]) -> list[str]:
    return [name for name, is_chosen in zip(ids, chosen.tolist(), strict=True) if is_chosen]
