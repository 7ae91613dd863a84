"""Tables of a study's result, for `docs/explanation/verdicts.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

AP = {"ap": "AP", "apr": "APr", "apc": "APc", "apf": "APf"}
FOUND = {"defect_auc": "defect scores below good", "defect_recall": "defects rejected"}


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Return `arms`, what came of each arm, and `verdicts`, more about what it judged.

    `instances` counts instances of the pool by what is finally known of them, not draws. All are of
    the first pool; with `-<pool>` behind the name they are of the others.
    """
    means = [row for row in result["rows"] if row["seed"] == "all"]
    found = {}
    for pool in dict.fromkeys(row.get("pool") for row in means):
        rows = [row for row in means if row.get("pool") == pool]
        suffix = f"-{pool}" if found else ""
        found[f"arms{suffix}"] = _arms(rows)
        found[f"verdicts{suffix}"] = _verdicts([row for row in rows if "accepted" in row])
        found[f"instances{suffix}"] = _instances([row for row in rows if "instance_recall" in row])
    return found


def _arms(rows: Sequence[Row]) -> str:
    against = "APr against `paste_all` (p)"
    return _table(
        ["arm", "steps", *AP.values(), against, *FOUND.values(), "good rejected"],
        [
            [
                row["arm"],
                f"{row['steps']:.0f}",
                *(_ap(row, name) for name in AP),
                _against_paste_all(row),
                *(_per_cent(row, name) for name in FOUND),
                _lost(row, ""),
            ]
            for row in rows
        ],
    )


def _verdicts(rows: Sequence[Row]) -> str:
    kinds = dict.fromkeys(
        name
        for row in rows
        for name in row
        if name.startswith("recall_") and not name.endswith("_std")
    )
    groups = {"_r": "rare", "_c": "common", "_f": "frequent"}
    return _table(
        [
            "arm",
            "accepted",
            "defects among rejected",
            *(f"{name.removeprefix('recall_').replace('_', ' ')} rejected" for name in kinds),
            *(f"good {name} rejected" for name in groups.values()),
        ],
        [
            [
                row["arm"],
                _per_cent(row, "accepted"),
                _per_cent(row, "defect_precision"),
                *(_per_cent(row, name) for name in kinds),
                *(_lost(row, group) for group in groups),
            ]
            for row in rows
        ],
    )


def _instances(rows: Sequence[Row]) -> str:
    start = "instance_recall_"
    kinds = dict.fromkeys(
        name
        for row in rows
        for name in row
        if name.startswith(start) and not name.endswith(("_std", "_at_3"))
    )
    lost = {"": "good", "_r": "good rare", "_c": "good common", "_f": "good frequent"}
    return _table(
        [
            "arm",
            "spoilt found",
            "found where 3 % of the good are lost",
            *(name.removeprefix(start).replace("_", " ") for name in kinds),
            *(f"{name} lost" for name in lost.values()),
        ],
        [
            [
                row["arm"],
                _per_cent(row, "instance_recall"),
                _per_cent(row, "instance_recall_at_3"),
                *(_per_cent(row, name) for name in kinds),
                *(_per_cent(row, f"instance_good_lost{group}") for group in lost),
            ]
            for row in rows
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |\n" for cells in (head, *rows)]
    return "".join([lines[0], "|---" * len(head) + "|\n", *lines[1:]])


def _ap(row: Row, name: str) -> str:
    return f"{100 * row[name]:.1f} ± {100 * row[f'{name}_std']:.1f}" if name in row else "-"


def _per_cent(row: Row, name: str) -> str:
    return f"{100 * row[name]:.0f} %" if name in row else "-"


def _lost(row: Row, group: str) -> str:
    # Results of 0.1 tell the accepted share of a group instead.
    older = {"": row.get("rejected_of_good")} | {
        f"_{one}": 1 - row[f"accepted_good_{one}"] for one in "rcf" if f"accepted_good_{one}" in row
    }
    share = row.get(f"good_lost{group}", older.get(group))
    return "-" if share is None else f"{100 * share:.0f} %"


def _against_paste_all(row: Row) -> str:
    if "apr_minus_paste_all" not in row:
        return "-"
    p = row["apr_p_paste_all"]
    shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{100 * row['apr_minus_paste_all']:+.1f} ({shown})"
