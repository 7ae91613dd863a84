"""What speaks against each instance of a pool, from looks at it and at real objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bsgal_score import EvidenceBook, EvidenceTable, Source
from bsgal_train.selection.scoring.looks import Looks

__all__ = ["SOURCES", "InstanceEvidence"]

SOURCES = (Source("mask_loss", bad="high"),)
"""What a look measures, and which values speak against an instance."""


class InstanceEvidence:
    """Keep what looks have shown of instances and of real objects.

    Args:
        frequencies: Frequency group of every class.
    """

    def __init__(self, frequencies: Sequence[str]) -> None:
        self._book = EvidenceBook(SOURCES, frequencies)

    def take(self, looks: Looks) -> None:
        """Take the looks of a batch in; objects that no source has a value for are left out."""
        values = {source.name: looks.losses[source.name] for source in SOURCES}
        seen = ~np.isnan(np.stack(list(values.values()))).all(axis=0)
        self._book.look(
            np.array(looks.ids, dtype=np.str_)[seen].tolist(),
            looks.classes[seen].tolist(),
            {name: column[seen].tolist() for name, column in values.items()},
            looks.is_real[seen].tolist(),
        )

    def table(self, ids: Sequence[str]) -> EvidenceTable:
        """Return the evidence about instances, by the pool's ids, and verdicts."""
        return self._book.table(ids)

    def state_dict(self) -> dict[str, Any]:
        """Return all that was seen."""
        return {"book": self._book.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._book.load_state_dict(state["book"])
