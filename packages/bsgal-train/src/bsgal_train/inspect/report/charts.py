"""The charts of a report, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bsgal_train.inspect.report.content import JudgedStep, Line, ScoreHistogram
from bsgal_train.inspect.report.frame import Frame

__all__ = ["MAX_DOTS", "contribution_chart", "histogram_chart", "line_chart"]

MAX_DOTS = 1200
"""Of more verdicts, evenly chosen ones are drawn, so that a page of a long run still opens."""
MAX_POINTS = 600
_PX_PER_LETTER = 6.5


def contribution_chart(steps: Sequence[JudgedStep]) -> str:
    """Draw one dot per verdict, its colour telling the outcome, and the threshold as a line.

    Args:
        steps: verdicts in any order; non-finite contributions are left out of the drawing.

    Returns:
        An `<svg>` element, or an empty string where there is nothing to draw.
    """
    drawn = sorted(
        (step for step in steps if math.isfinite(step.contribution)), key=lambda step: step.step
    )
    if not drawn:
        return ""
    drawn = drawn[:: math.ceil(len(drawn) / MAX_DOTS)]
    first, last = drawn[0].step, max(drawn[-1].step, drawn[0].step + 1)
    values = [step.contribution for step in drawn] + [step.threshold for step in drawn] + [0.0]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    frame = Frame(x_range=(first, last), y_range=(low - margin, high + margin))
    parts = [frame.opening("contribution of each judged step, and the threshold")]
    parts += [frame.grid_line(value, f"{value:.2g}") for value in sorted({low, 0.0, high})]
    line = " ".join(
        f"{frame.x_px(step.step):.1f},{frame.y_px(step.threshold):.1f}" for step in drawn
    )
    parts.append(f'<polyline class="threshold" points="{line}"/>')
    for step in drawn:
        outcome = "accepted" if step.accepted else "rejected"
        parts.append(
            f'<circle class="{outcome}" cx="{frame.x_px(step.step):.1f}" '
            f'cy="{frame.y_px(step.contribution):.1f}" r="3"><title>step {step.step}: '
            f"{step.contribution:.3g}, {outcome}</title></circle>"
        )
    parts.append(frame.x_label(first, f"step {first}", "start"))
    parts.append(frame.x_label(last, f"step {last}", "end"))
    parts.append("</svg>")
    return "".join(parts)


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


def line_chart(
    lines: Sequence[Line], *, label: str, y_range: tuple[float, float] | None = None
) -> str:
    """Draw lines with a legend.

    Args:
        lines: each with its own points; of a long line, evenly chosen points are drawn.
        label: what is shown, for those who cannot see it.
        y_range: values at the bottom and the top; None fits it to the points.

    Returns:
        An `<svg>` element, or an empty string where there is nothing to draw.
    """
    finite = [(line, _shown_points(line)) for line in lines]
    finite = [(line, points) for line, points in finite if points]
    if not finite:
        return ""
    xs = [x for _, points in finite for x, _ in points]
    ys = [y for _, points in finite for _, y in points]
    first, last = min(xs), max(max(xs), min(xs) + 1)
    low, high = y_range or (min(ys), max(ys))
    if low == high:
        low, high = low - 1, high + 1
    frame = Frame(x_range=(first, last), y_range=(low, high), top_px=26)
    parts = [frame.opening(label)]
    parts += [frame.grid_line(value, f"{value:.3g}") for value in (low, (low + high) / 2, high)]
    legend_px = float(frame.left_px)
    for line, points in finite:
        path = " ".join(f"{frame.x_px(x):.1f},{frame.y_px(y):.1f}" for x, y in points)
        if len(points) == 1:
            x, y = points[0]
            parts.append(
                f'<circle class="dot {line.style}" cx="{frame.x_px(x):.1f}" '
                f'cy="{frame.y_px(y):.1f}" r="3"/>'
            )
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        parts.append(
            f'<line class="line {line.style}" x1="{legend_px:.0f}" x2="{legend_px + 18:.0f}" '
            f'y1="10" y2="10"/><text x="{legend_px + 24:.0f}" y="14">{escape(line.name)}</text>'
        )
        legend_px += 24 + _PX_PER_LETTER * len(line.name) + 18
    parts.append(frame.x_label(first, f"step {first:.0f}", "start"))
    parts.append(frame.x_label(last, f"step {last:.0f}", "end"))
    parts.append("</svg>")
    return "".join(parts)


def _shown_points(line: Line) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    return finite[:: math.ceil(len(finite) / MAX_POINTS) or 1]
