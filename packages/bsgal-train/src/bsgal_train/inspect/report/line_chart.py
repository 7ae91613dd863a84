"""Lines over training steps, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bsgal_train.inspect.report.content import Line
from bsgal_train.inspect.report.frame import Frame

MAX_POINTS = 600
_PX_PER_LETTER = 6.5


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
