"""A snapshot of the evidence about a pool's instances, in memory and as parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Judgement = Literal["accept", "reject", "uncertain"]
_SCHEMA = "1"
_COLUMNS = ("id", "looks", "p_value", "verdict")


@dataclass(frozen=True)
class EvidenceTable:
    """What is known about instances at one time; see `EvidenceBook.table`.

    Example:
        >>> ids, looks = ["a"], np.array([2])
        >>> table = EvidenceTable(ids, looks, {}, np.array([0.5]), np.array(["accept"]), 0.03, 2)
        >>> dict(zip(table.ids, table.verdicts.tolist()))
        {'a': 'accept'}
    """

    ids: list[str]
    """One per row, n rows."""
    looks: NDArray[np.integer[Any]]
    """At how many looks a source has said something, (n,)."""
    evidence: Mapping[str, NDArray[np.float32]]
    """By source, how many standard deviations worse than its class's real units a unit is, (n,): 0
    is an ordinary one, negative is better, NaN is no look of this source."""
    p_values: NDArray[np.float64]
    """(n,), NaN without a look."""
    verdicts: NDArray[np.str_]
    """`"accept"`, `"reject"` or `"uncertain"`, (n,)."""
    alpha: float
    """At most this share of real units would be rejected."""
    min_looks: int
    """Units with fewer looks are uncertain."""

    def or_before(self, before: EvidenceTable) -> EvidenceTable:
        """Return this table with the rows of an earlier one where that is made of more looks.

        Args:
            before: About any instances; those that are not in this table are left out. Sources that
                only it has are left out, too.
        """
        row_of = {name: row for row, name in enumerate(before.ids)}
        rows = np.array([row_of.get(name, -1) for name in self.ids], dtype=np.int64)
        chosen = np.flatnonzero(rows >= 0)
        chosen = chosen[before.looks[rows[chosen]] > self.looks[chosen]]

        def mixed(own: NDArray[Any], earlier: NDArray[Any]) -> NDArray[Any]:
            found = own.copy()
            found[chosen] = earlier[rows[chosen]]
            return found

        nothing = np.full(len(before.ids), np.nan, dtype=np.float32)
        return EvidenceTable(
            self.ids,
            mixed(self.looks, before.looks),
            {
                name: mixed(own, before.evidence.get(name, nothing))
                for name, own in self.evidence.items()
            },
            mixed(self.p_values, before.p_values),
            mixed(self.verdicts, before.verdicts),
            self.alpha,
            self.min_looks,
        )

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write a file with the columns id, looks, evidence_<source>, p_value and verdict.

        Written whole or not at all. Needs the extra `[parquet]`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"id": pa.array(self.ids, pa.string())}
        columns["looks"] = pa.array(self.looks, pa.int32())
        for name, values in self.evidence.items():
            columns[f"evidence_{name}"] = pa.array(values, pa.float32())
        columns["p_value"] = pa.array(self.p_values, pa.float64())
        columns["verdict"] = pa.array(self.verdicts.tolist(), pa.string())
        settings = {"schema": _SCHEMA, "alpha": self.alpha, "min_looks": self.min_looks}
        table = pa.table(columns).replace_schema_metadata({"bsgal_evidence": json.dumps(settings)})
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> EvidenceTable:
        """Open a file that `to_parquet` wrote. Needs the extra `[parquet]`.

        Raises:
            ValueError: If it is no such file, or says what cannot be.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no parquet file: {error}") from error
        settings = json.loads((table.schema.metadata or {}).get(b"bsgal_evidence", b"{}"))
        if settings.get("schema") != _SCHEMA:
            raise ValueError(
                f"{path} must be a file of evidence with schema {_SCHEMA}, got "
                f"{settings.get('schema')}; write it with `EvidenceTable.to_parquet`"
            )
        if missing := [name for name in _COLUMNS if name not in table.column_names]:
            raise ValueError(f"{path} must have the columns {list(_COLUMNS)}, lacks {missing}")
        verdicts = table["verdict"].to_pylist()
        if unknown := set(verdicts) - set(get_args(Judgement)):
            raise ValueError(
                f"{path}: verdict must be one of {get_args(Judgement)}, got {sorted(unknown)}"
            )
        evidence = {
            name.removeprefix("evidence_"): table[name].to_numpy()
            for name in table.column_names
            if name.startswith("evidence_")
        }
        return cls(
            table["id"].to_pylist(),
            table["looks"].to_numpy(),
            evidence,
            table["p_value"].to_numpy(),
            np.array(verdicts, dtype=np.str_),
            float(settings["alpha"]),
            int(settings["min_looks"]),
        )
