"""Evidence about units that adds up over looks, and verdicts at a level.

`EvidenceBook` says what is guaranteed. The parts: `_looks` (what comes in), `_normal_scores` (one
scale for all sources and times), `_hashed_table` (the means), `_conformal` (p-values).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ._conformal import Calibration, Combination
from ._evidence_table import EvidenceTable
from ._hashed_table import HashedTable
from ._looks import Looks, Source, gather_looks, unit_hashes
from ._normal_scores import normal_scores
from ._policies import check_settings
from ._pooled_ranks import SortedGroups
from ._real_window import RealWindow
from ._slots import occurrence
from .errors import StateMismatchError

# PyTorch saves few operations on unsigned integers, and needs none.
_SAVED_AS = {"uint64": np.int64, "uint16": np.int16}


class EvidenceBook:
    """Evidence about many units, held against that about real ones, over sources and looks.

    A *look* at a unit gives a value of each source, or none (NaN). It becomes a normal score: its
    rank among the newest values of real units of the class's frequency group, on the scale of a
    normal distribution. A unit's evidence is the mean of its scores over looks, of real and of
    generated ones alike. Its distance from its class's real units' mean (shrunk to the group's,
    that to all), in standard deviations, ranks among those of the real units of the group. With n
    real units in the group, of which r look at least as bad, and the share q of the other groups'
    real units that do, the p-value is

        p = (1 + r + k q) / (1 + n + k),    k = `pooling`.

    So a group with few real units is not mute: all the others help it out.

    **What is guaranteed.** Let a unit and the n real ones of its group be exchangeable. Then p is
    at most `alpha` with a probability of at most `alpha` (1 + k / (1 + n)), whatever the other
    groups are like, the distributions, and the dependence between sources and looks. That tends to
    `alpha` as n grows, and is the worst case: that no real unit of another group ever looks as bad.
    Where the distances of all groups have one distribution, it is `alpha`, for each group and so
    over all. `pooling=0` uses the group alone, and cannot reject where n < 1 / `alpha` - 1. It is a
    statement over the classes of a group together, not for each class.

    **What that assumes.**

    - A good unit looks to the model like a real one: of the same classes in the same shares,
      trained on as often, at similar sizes. Good drawings that differ from real photographs are
      rejected more often than `alpha`.
    - Real units of a class are a sample. The same few photographs seen by a model that has learnt
      them by heart are better than a new one would be: judge some that were held out.
    - The model moves. Scores are relative to the real units of the moment of the look, so a drift
      that all share cancels; one of good units against real ones does not.
    - Real units looked at less often serve those looked at more often by the variance between and
      within units, which is found from real units that were looked at twice. That is exact where
      all have as many looks, or the scores are normal.
    - Where a source says nothing about a unit, it is held, by what the other sources say, against
      real units about which they speak too; that it is missing is no evidence.
    - The means and variances of the groups, which scale the distances, are those of the real units
      without the judged one: an error of 1 / n.
    - One p-value at a time. Who asks after every look and stops at the first rejection rejects more
      than `alpha`.

    **How sources combine.** `"max"`: the largest distance ranks like one, so that no correction is
    needed. `"bonferroni"`: the smallest p-value times the number of sources that have spoken.
    `"cauchy"`: the mean of tan((½ - p)π) (Liu & Xie, JASA 2020), which holds approximately, for
    small ones. `"max"` is the default because it was the most powerful in simulation where one
    source knows.

    Memory: 14 bytes and 5 per source for each unit, and 16 and 13 per source for each of `window`
    slots per class. Ids are kept as 64-bit hashes: with 1.2 million, two of them share evidence
    with a probability of 4e-8.

    Args:
        sources: What a look measures.
        group_of_class: The frequency group of each class, for example `"r"`, `"c"` or `"f"`.
        window: Real units per class that are remembered, the newest ones; also limits the work.
        max_looks: Up to this many looks weigh alike; then the older ones fade, so that a verdict
            can be revised.
        min_real: Until so many real units can be compared (n + k), a source's values do not count:
            ranks among few are too coarse to be added to those among many.
        shrinkage: How many real units the group weighs as much as, against those of a class;
            right where a class's mean varies 1/`shrinkage` as much as the units in a class. A
            source may have one of its own.
        pooling: How many real units of a group all other groups weigh as much as.
        combine: How sources combine.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> book = EvidenceBook([Source("loss", bad="high")], ["f"], window=128)
        >>> real = [f"real {i}" for i in range(99)]
        >>> book.look(real, [0] * 99, {"loss": [i / 99 for i in range(99)]}, [True] * 99)
        >>> book.look(["good", "bad"], [0, 0], {"loss": [0.5, 7.0]}, [False, False])
        >>> book.table(["good", "bad", "new"], alpha=0.03, min_looks=1).verdicts.tolist()
        ['accept', 'reject', 'uncertain']
    """

    def __init__(
        self,
        sources: Sequence[Source],
        group_of_class: Sequence[str],
        *,
        window: int = 32,
        max_looks: int = 8,
        min_real: int = 32,
        shrinkage: float = 2.0,
        pooling: float = 64.0,
        combine: Combination = "max",
    ) -> None:
        names = [source.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`sources` must be at least one, of distinct names, got {names}")
        if wrong := [source for source in sources if source.bad not in ("low", "high")]:
            raise ValueError(f"`bad` must be 'low' or 'high', got {wrong[0]}")
        if not len(group_of_class):
            raise ValueError("`group_of_class` must name the group of at least one class, got none")
        for name, count in (("window", window), ("max_looks", max_looks), ("min_real", min_real)):
            if not 1 <= count < 256:
                raise ValueError(f"`{name}` must lie in [1, 256), got {count}")
        by_source = [shrinkage if one.shrinkage is None else one.shrinkage for one in sources]
        for number in (shrinkage, *by_source):
            if not 0 < number < float("inf"):
                raise ValueError(f"`shrinkage` must be positive and finite, got {number}")
        if not 0 <= pooling < float("inf"):
            raise ValueError(f"`pooling` must be finite and not negative, got {pooling}")
        if combine not in get_args(Combination):
            raise ValueError(f"`combine` must be one of {get_args(Combination)}, got {combine!r}")
        self.sources, self.group_of_class = tuple(sources), tuple(group_of_class)
        self.window, self.max_looks = int(window), int(max_looks)
        self.min_real = int(min_real)
        self.shrinkage, self.pooling, self.combine = float(shrinkage), float(pooling), combine
        self._shrinkage = np.array(by_source, dtype=np.float64)
        groups = sorted(set(group_of_class))
        self._groups = np.array([groups.index(one) for one in group_of_class], dtype=np.int32)
        self._table = HashedTable(len(names))
        self._window = RealWindow(len(self._groups), self.window, len(names))
        self._sorted = self._sort_values()
        self._calibration: Calibration | None = None

    def __len__(self) -> int:
        """How many units were looked at, real ones included."""
        return len(self._table)

    def look(
        self,
        ids: Sequence[str],
        classes: Tensor | Sequence[int],
        values: Mapping[str, Tensor | Sequence[float]],
        is_real: Tensor | Sequence[bool],
        *,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Take the looks of a step in.

        Neither the order of the units nor how they are spread over processes or devices matters.

        Args:
            ids: Of the units, (n,); a real unit may have the id of a generated one.
            classes: Class index of each, (n,), each in [0, n_classes).
            values: Source name to values, (n,). NaN: this source says nothing about this unit.
            is_real: Whether each is real, (n,).
            group: Processes that share the book; all of them have to call `look`. 8 bytes per look
                times 3 and the number of sources, and 16 more, are sent to each. None: this process
                alone.

        Raises:
            ValueError: If lengths or sources do not fit, a value is infinite, a class is unknown
                or is not the one that the unit had before. Nothing was changed.
            OtherProcessError: If that is so in another process.
        """
        looks = gather_looks(
            self.sources, len(self.group_of_class), ids, classes, values, is_real, group
        )
        self._check_classes(looks)
        self._calibration = None
        # Looks at the same unit in one step come one after the other.
        number = occurrence(looks.hashes)
        for times in range(int(number.max(initial=-1)) + 1):
            self._take(looks, number == times)

    def p_values(self, ids: Sequence[str], *, real: bool = False) -> NDArray[np.float64]:
        """Return a p-value of each unit's evidence, float64 (n,): small speaks against it.

        Args:
            ids: Of the units, (n,).
            real: Whether they are real ones, which are held against the others.

        Returns:
            NaN for units without a look.
        """
        return self._judge(self._find(ids, real))[1]

    def table(
        self, ids: Sequence[str], *, alpha: float = 0.03, min_looks: int = 2, real: bool = False
    ) -> EvidenceTable:
        """Return evidence and verdicts on units, for a sampler or a file.

        A unit is `uncertain` with fewer than `min_looks` looks, and where there are so few real
        units that no p-value could be as small as `alpha`. Otherwise it is rejected if its p-value
        is at most `alpha`, and accepted if not.

        Args:
            ids: Of the units, (n,).
            alpha: At most this share of real units would be rejected, in (0, 1).
            min_looks: At least 1.
            real: Whether they are real ones, which are held against the others.

        Raises:
            ValueError: If `alpha` or `min_looks` is out of range.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"`alpha` must lie in (0, 1), got {alpha}")
        if min_looks < 1:
            raise ValueError(f"`min_looks` must be at least 1, got {min_looks}")
        rows = self._find(ids, real)
        scores, p_values, smallest = self._judge(rows)
        verdicts = np.where(p_values <= alpha, "reject", "accept")
        verdicts = np.where(smallest <= alpha, verdicts, "uncertain")
        verdicts[rows["looks"] < min_looks] = "uncertain"
        evidence = {source.name: scores[:, i] for i, source in enumerate(self.sources)}
        return EvidenceTable(
            list(ids), rows["looks"], evidence, p_values, verdicts, alpha, min_looks
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and, as tensors, all that was learnt."""
        return {
            **self._settings(),
            "table": _to_tensors(self._table.columns()),
            "real": _to_tensors(self._window.columns()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, bit for bit.

        Raises:
            StateMismatchError: If it was saved with other settings.
        """
        if missing := {"table", "real"} - set(state):
            raise StateMismatchError(f"the saved state has no {sorted(missing)}")
        expected = self._settings()
        check_settings(state, expected, expected)
        self._table.load_columns(_to_arrays(state["table"]))
        self._window.load_columns(_to_arrays(state["real"]))
        self._sorted = self._sort_values()
        self._calibration = None

    def _settings(self) -> dict[str, Any]:
        return {
            "sources": [list(source) for source in self.sources],
            "group_of_class": list(self.group_of_class),
            "window": self.window,
            "max_looks": self.max_looks,
            "min_real": self.min_real,
            "shrinkage": self.shrinkage,
            "pooling": self.pooling,
            "combine": self.combine,
        }

    def _check_classes(self, looks: Looks) -> None:
        """Refuse a unit whose class has changed, in all processes alike."""
        before = self._table.find(looks.hashes)["classes"]
        changed = (before >= 0) & (before != looks.classes)
        # Equal hashes stand next to each other.
        same_unit = looks.hashes[1:] == looks.hashes[:-1]
        changed[1:] |= same_unit & (looks.classes[1:] != looks.classes[:-1])
        if changed.any():
            where = np.flatnonzero(changed)[0]
            raise ValueError(
                f"a unit with the hash {looks.hashes[where]:016x} has the class "
                f"{looks.classes[where]} and had another one; give units of different classes "
                "different ids"
            )

    def _take(self, looks: Looks, chosen: NDArray[np.bool_]) -> None:
        """Add one look at each of some different units."""
        hashes, classes, values = looks.hashes[chosen], looks.classes[chosen], looks.values[chosen]
        slots = self._enter(hashes, classes, values, looks.is_real[chosen])
        # What stands in a real unit's slot must not count against it.
        own = np.where((slots >= 0)[:, None], values, np.float32(np.nan))
        scores = normal_scores(
            values, own, self._groups[classes], self._sorted, self.pooling, self.min_real
        )
        spoken = ~np.isnan(scores)
        rows = self._table.find(hashes)
        before = rows["counts"].astype(np.int64)
        differences = np.where(spoken, scores - rows["means"], np.float32(0))
        rows["classes"][:] = classes
        rows["looks"][:] = np.minimum(rows["looks"] + spoken.any(axis=1).astype(int), 65535)
        rows["counts"][:] = np.minimum(before + spoken, self.max_looks)
        rows["means"] += differences / np.maximum(rows["counts"], 1).astype(np.float32)
        self._table.put({name: column[spoken.any(axis=1)] for name, column in rows.items()})
        # The square of a new score's distance from the mean of n: (n + 1) / n times the variance.
        within = np.square(differences) * (before / (before + 1.0))
        within[~spoken | (before == 0)] = np.nan
        real = slots >= 0
        self._window.write(
            classes[real], slots[real], rows["means"][real], rows["counts"][real], within[real]
        )

    def _enter(
        self,
        hashes: NDArray[np.uint64],
        classes: NDArray[np.int32],
        values: NDArray[np.float32],
        is_real: NDArray[np.bool_],
    ) -> NDArray[np.intp]:
        """Remember the newest values of real units; return the slots of all units, -1 for none."""
        slots = np.full(len(hashes), -1)
        slots[is_real], old = self._window.enter(hashes[is_real], classes[is_real], values[is_real])
        new = np.where((slots >= 0)[:, None], values, np.float32(np.nan))[is_real]
        for source, ordered in enumerate(self._sorted):
            ordered.replace(old[:, source], new[:, source], self._groups[classes[is_real]])
        return slots

    def _sort_values(self) -> list[SortedGroups]:
        groups = np.repeat(self._groups, self.window)
        columns = self._window.values.reshape(len(groups), -1).T
        return [SortedGroups(column, groups, int(self._groups.max()) + 1) for column in columns]

    def _find(self, ids: Sequence[str], real: bool) -> dict[str, NDArray[Any]]:
        return self._table.find(unit_hashes(ids, np.full(len(ids), real)))

    def _judge(
        self, rows: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Return scores by source, p-values and the smallest possible ones; NaN and 1 for none."""
        if self._calibration is None:
            self._calibration = Calibration(
                self._window, self._groups, self._shrinkage, self.pooling, self.combine
            )
        slots = self._window.locate(rows["hashes"], rows["classes"])
        return self._calibration.judge(rows["classes"], slots, rows["means"], rows["counts"])


def _to_tensors(columns: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(column.view(_SAVED_AS.get(column.dtype.name, column.dtype)).copy())
        for name, column in columns.items()
    }


def _to_arrays(columns: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    arrays["hashes"] = arrays["hashes"].view(np.uint64)
    return arrays
