"""Tables of a study's result, for `docs/explanation/verdicts.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

AP = {"ap": "AP", "apr": "APr", "apc": "APc", "apf": "APf"}
FOUND = {
    "defect_auc": "defect scores below good",
    "defect_recall": "defects rejected",
    "rejected_of_good": "good rejected",
}
VERDICTS = {
    "accepted": "accepted",
    "defect_precision": "defects among rejected",
    "recall_wrong_category": "wrong category rejected",
    "recall_broken_mask": "broken mask rejected",
    "recall_noise": "noise rejected",
    "accepted_good_r": "good rare accepted",
    "accepted_good_c": "good common accepted",
    "accepted_good_f": "good frequent accepted",
}


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Return `arms`, what came of each arm, and `verdicts`, more about what it judged."""
    arms = [row for row in result["rows"] if row["seed"] == "all"]
    judged = [row for row in arms if "accepted" in row]
    return {
        "arms": _table(
            ["arm", "steps", *AP.values(), "APr against `paste_all` (p)", *FOUND.values()],
            [
                [
                    row["arm"],
                    f"{row['steps']:.0f}",
                    *(_ap(row, name) for name in AP),
                    _against_paste_all(row),
                    *(_per_cent(row, name) for name in FOUND),
                ]
                for row in arms
            ],
        ),
        "verdicts": _table(
            ["arm", *VERDICTS.values()],
            [[row["arm"], *(_per_cent(row, name) for name in VERDICTS)] for row in judged],
        ),
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |\n" for cells in (head, *rows)]
    return "".join([lines[0], "|---" * len(head) + "|\n", *lines[1:]])


def _ap(row: Row, name: str) -> str:
    return f"{100 * row[name]:.1f} ± {100 * row[f'{name}_std']:.1f}" if name in row else "-"


def _per_cent(row: Row, name: str) -> str:
    return f"{100 * row[name]:.0f} %" if name in row else "-"


def _against_paste_all(row: Row) -> str:
    if "apr_minus_paste_all" not in row:
        return "-"
    p = row["apr_p_paste_all"]
    shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{100 * row['apr_minus_paste_all']:+.1f} ({shown})"
