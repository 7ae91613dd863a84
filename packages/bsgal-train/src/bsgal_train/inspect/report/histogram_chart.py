"""A histogram of scores with accepted and rejected ones stacked, as inline SVG."""

from __future__ import annotations

import math

from bsgal_train.inspect.report.content import ScoreHistogram
from bsgal_train.inspect.report.frame import Frame


def histogram_chart(histogram: ScoreHistogram) -> str:
    """Draw the bars of one group and its threshold; empty if it holds nothing."""
    totals = [a + r for a, r in zip(histogram.n_accepted, histogram.n_rejected, strict=True)]
    if not sum(totals):
        return ""
    edges = histogram.edges
    frame = Frame(
        x_range=(edges[0], edges[-1]),
        y_range=(0, max(totals)),
        width_px=340,
        height_px=170,
        right_px=16,
    )
    parts = [frame.opening(f"scores, {histogram.title}")]
    parts += [frame.grid_line(value, f"{value:d}") for value in (0, max(totals))]
    for left, right, accepted, rejected in zip(
        edges, edges[1:], histogram.n_accepted, histogram.n_rejected, strict=False
    ):
        bottom = 0
        for outcome, count in (("accepted", accepted), ("rejected", rejected)):
            if count:
                x, top = frame.x_px(left), frame.y_px(bottom + count)
                parts.append(
                    f'<rect class="{outcome}" x="{x:.1f}" y="{top:.1f}" '
                    f'width="{max(frame.x_px(right) - x - 1, 1):.1f}" '
                    f'height="{frame.y_px(bottom) - top:.1f}"><title>{left:.3g} to {right:.3g}: '
                    f"{count} {outcome}</title></rect>"
                )
            bottom += count
    if math.isfinite(histogram.threshold) and edges[0] <= histogram.threshold <= edges[-1]:
        x = frame.x_px(histogram.threshold)
        parts.append(
            f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top_px}" '
            f'y2="{frame.height_px - frame.bottom_px}"/>'
        )
    parts.append(frame.x_label(edges[0], f"{edges[0]:.2g}", "start"))
    parts.append(frame.x_label(edges[-1], f"{edges[-1]:.2g}", "end"))
    parts.append("</svg>")
    return "".join(parts)
