"""Write results as tables for a terminal; numbers are in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bsgal_train.evaluation.result import LvisResult

__all__ = ["METRICS", "category_table", "percent", "percent_text", "summary_table"]

METRICS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "aps",
    "APm": "apm",
    "APl": "apl",
    "APr": "apr",
    "APc": "apc",
    "APf": "apf",
    "AR": "ar",
}
"""What a table calls a metric, and the field that holds it."""


def summary_table(result: LvisResult) -> str:
    """Write one line of metrics for each IoU type, and the protocol they hold for."""
    rows = [["", *METRICS]]
    for iou_type, metrics in result.metrics.items():
        rows.append(
            [iou_type, *(percent_text(getattr(metrics, name)) for name in METRICS.values())]
        )
    counts = (
        f"{result.n_images} images, {result.n_instances} objects, {result.n_predictions} "
        f"predictions ({result.n_over_limit} over the limit, {result.n_unjudged} not judged)"
    )
    return f"{_aligned(rows)}\nprotocol {result.protocol}; {counts}"


def category_table(result: LvisResult) -> str:
    """Write one line for each category that has an object or a prediction."""
    iou_types = list(result.metrics)
    header = ["id", "category", "group", "images", "objects", "predictions"]
    rows = [header + [f"{metric} {key}" for key in iou_types for metric in ("AP", "AP50", "AR")]]
    for item in result.categories:
        if not item.n_instances and not item.n_predictions:
            continue
        row = [str(item.category_id), item.name, item.frequency or "-"]
        row += [str(item.n_images), str(item.n_instances), str(item.n_predictions)]
        for key in iou_types:
            row += [
                percent_text(item.ap[key]),
                percent_text(item.ap50[key]),
                percent_text(item.ar[key]),
            ]
        rows.append(row)
    return _aligned(rows)


def percent(value: float | None) -> float:
    """Return a share in percent, nan for none."""
    return math.nan if value is None else 100 * value


def percent_text(value: float | None) -> str:
    """Write a share in percent, a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align numbers to the right and words to the left."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    is_word = [any(cell[:1].isalpha() for cell in column[1:]) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_word, strict=True)
        ).rstrip()
        for row in rows
    )
