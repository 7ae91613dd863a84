"""README tables of a study's result."""

from __future__ import annotations

from typing import Any

from train_study.summary import METRICS


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the README tables: AP of the arms, and what they found of the defects."""
    arms = [row for row in result["rows"] if row["seed"] == "all"]

    def ap(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.1f} ± {100 * row[f'{name}_std']:.1f}" if name in row else "-"

    def part(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.0f} %" if name in row else "-"

    quality = [
        "| arm | steps | AP | APr | APc | APf | APr against `paste_all` (p) |",
        "|---|---|---|---|---|---|---|",
    ]
    defects = [
        "| arm | defect scores below good | accepted | defects among rejected | defects rejected | "
        "wrong category | broken mask | noise | good rejected |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in arms:
        test = "-"
        if "apr_minus_paste_all" in row:
            test = f"{100 * row['apr_minus_paste_all']:+.1f} ({row['apr_p_paste_all']:.2f})"
        cells = [ap(row, name) for name in METRICS]
        quality.append(
            f"| {row['arm']} | {row['steps']:.0f} | " + " | ".join([*cells, test]) + " |"
        )
        if "accepted" in row:
            names = (
                "defect_auc", "accepted", "defect_precision", "defect_recall",
                "recall_wrong_category", "recall_broken_mask", "recall_noise", "rejected_of_good",
            )  # fmt: skip
            found = " | ".join(part(row, name) for name in names)
            defects.append(f"| {row['arm']} | {found} |")
    return {"ap": "\n".join(quality) + "\n", "defects": "\n".join(defects) + "\n"}
