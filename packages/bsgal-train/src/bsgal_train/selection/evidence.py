"""What speaks against each instance of a pool: looks at it, held against looks at real objects.

A look (`selection.scoring.looks`) gives a value of each *source*:

- `prototype`: how much the region feature is like that of the class: the mean of its similarity to
  the latest real objects of the class and of that to the latest pasted ones, itself left out. Two
  real objects have a poor mean; a pool that is good for the most part has a better one.
- `real_prototype`: the same to the real objects alone.
- `cls_loss`, `box_loss`, `mask_loss`: the object's own losses. Without a gradient this is what a
  small-loss rule goes by.
- `outline`: the mask loss of the hardest pixels, relative to what objects of the class, real and
  pasted, have on average: an outline that is off by a little is wrong in few pixels, and thin or
  jagged things have hard outlines.

`bsgal_score.EvidenceBook` makes p-values of them that add up over looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bsgal_score import EvidenceBook, EvidenceTable, Prototypes, Source
from bsgal_train.processes import group as processes
from bsgal_train.recipe import EvidenceSource, SelectionConfig
from bsgal_train.selection.class_averages import ClassAverages
from bsgal_train.selection.scoring.looks import Looks

__all__ = ["InstanceEvidence"]

_SIMILARITIES = ("prototype", "real_prototype")

_MIN_VISIBLE = 0.5
"""Of an object that is covered further, a look says more about what covers it."""

_SHRINKAGE = 100.0
"""All sources are relative to the class already, as far as the class has shown itself."""

_POOLING = 200.0

_MIN_REAL = 8
"""The visit of all classes shows many more at once; only toy data have as few."""


class InstanceEvidence:
    """Keep what looks have shown of instances and of real objects.

    Args:
        width: numbers per region feature, of the detector that looks.
        frequencies: frequency group of every class.
        config: sources, level and numbers of looks.
        before: what was known before; it counts for an instance until there are as many looks here.
    """

    def __init__(
        self,
        width: int,
        frequencies: Sequence[str],
        config: SelectionConfig,
        before: EvidenceTable | None = None,
    ) -> None:
        self._config = config
        self._before = before
        self._book = EvidenceBook(
            [_source(name) for name in config.sources],
            frequencies,
            max_looks=config.max_looks,
            min_real=_MIN_REAL,
            shrinkage=_SHRINKAGE,
            pooling=_POOLING,
        )
        n_classes = len(frequencies)
        self._outlines = ClassAverages(n_classes)
        # Of real and of pasted objects.
        self._prototypes = tuple(
            Prototypes(n_classes, width, dtype=torch.float16) for _ in range(2)
        )

    def take(self, looks: Looks, *, is_shared: bool) -> None:
        """Take the looks of a batch in.

        Args:
            looks: at the batch's objects.
            is_shared: all processes give the same looks; else each gives its own.
        """
        group = None if is_shared else processes.group()
        looks = looks.only((looks.visible_frac >= _MIN_VISIBLE) & ~np.isnan(looks.features[:, 0]))
        values = self._values(looks)
        self._book.look(
            looks.ids, looks.classes.tolist(), values, looks.is_real.tolist(), group=group
        )
        self._outlines.add(looks.classes, _log(looks.losses["mask_hardest"]), is_shared=is_shared)
        for prototypes, chosen in zip(
            self._prototypes, (looks.is_real, ~looks.is_real), strict=True
        ):
            part = looks.only(chosen)
            features = torch.from_numpy(part.features)
            prototypes.update(part.ids, part.classes.tolist(), features, group=group)

    def p_values(self, ids: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the p-value of each instance, NaN where it is uncertain, float64 (n,)."""
        table = self.table(ids)
        return np.where(table.verdicts == "uncertain", np.nan, table.p_values)

    def table(self, ids: Sequence[str]) -> EvidenceTable:
        """Return the evidence about instances, by the pool's ids, and verdicts."""
        config = self._config
        table = self._book.table(ids, alpha=config.alpha, min_looks=config.min_looks)
        return table if self._before is None else table.or_before(self._before)

    def state_dict(self) -> dict[str, Any]:
        """Return all that was seen."""
        return {
            "book": self._book.state_dict(),
            "outlines": self._outlines.state_dict(),
            "prototypes": [one.state_dict() for one in self._prototypes],
        }

    @staticmethod
    def width_of(state: Mapping[str, Any]) -> int:
        """Return the width of features that a state is of."""
        return int(state["prototypes"][0]["width"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._book.load_state_dict(state["book"])
        self._outlines.load_state_dict(state["outlines"])
        for one, stored in zip(self._prototypes, state["prototypes"], strict=True):
            one.load_state_dict(stored)

    def _values(self, looks: Looks) -> dict[str, Sequence[float]]:
        found: dict[str, npt.NDArray[np.floating[Any]]] = {}
        for name in self._config.sources:
            if name == "outline":
                hardest = _log(looks.losses["mask_hardest"])
                found[name] = self._outlines.relative(looks.classes, hardest)
            elif name not in _SIMILARITIES:
                found[name] = looks.losses[name]
        if set(_SIMILARITIES) & set(self._config.sources):
            found |= self._similarities(looks)
        return {name: found[name].tolist() for name in self._config.sources}

    def _similarities(self, looks: Looks) -> Mapping[str, npt.NDArray[np.float32]]:
        features = torch.from_numpy(looks.features)
        real, pasted = (
            one.compare(looks.ids, looks.classes.tolist(), features, is_own.tolist()).numpy()
            for one, is_own in zip(
                self._prototypes,
                (looks.is_real, ~looks.is_real),
                strict=True,
            )
        )
        both = np.where(
            np.isnan(pasted), real, np.where(np.isnan(real), pasted, (real + pasted) / 2)
        )
        return {"real_prototype": real, "prototype": both}


def _source(name: EvidenceSource) -> Source:
    return Source(name, bad="low" if name in _SIMILARITIES else "high")


def _log(losses: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.log(np.maximum(losses, np.float32(1e-4)))
