"""The chart of contributions over training steps, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bsgal_train.report.content import JudgedStep

WIDTH_PX, HEIGHT_PX = 720, 220
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 48, 12, 12, 28


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
    first, last = drawn[0].step, max(drawn[-1].step, drawn[0].step + 1)
    values = [step.contribution for step in drawn] + [step.threshold for step in drawn] + [0.0]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def x_px(step: int) -> float:
        return LEFT_PX + (step - first) / (last - first) * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y_px(value: float) -> float:
        return TOP_PX + (high - value) / (high - low) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)

    parts = [
        f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" '
        'aria-label="contribution of each judged step, and the threshold">'
    ]
    for value in (low + margin, 0.0, high - margin):
        parts.append(
            f'<line class="grid" x1="{LEFT_PX}" x2="{WIDTH_PX - RIGHT_PX}" '
            f'y1="{y_px(value):.1f}" y2="{y_px(value):.1f}"/>'
            f'<text x="{LEFT_PX - 6}" y="{y_px(value) + 4:.1f}" text-anchor="end">'
            f"{value:.2f}</text>"
        )
    line = " ".join(f"{x_px(step.step):.1f},{y_px(step.threshold):.1f}" for step in drawn)
    parts.append(f'<polyline class="threshold" points="{line}"/>')
    for step in drawn:
        outcome = "accepted" if step.accepted else "rejected"
        parts.append(
            f'<circle class="{outcome}" cx="{x_px(step.step):.1f}" '
            f'cy="{y_px(step.contribution):.1f}" r="3"><title>step {step.step}: '
            f"{step.contribution:.3f}, {outcome}</title></circle>"
        )
    for step_number in (first, last):
        anchor = "start" if step_number == first else "end"
        parts.append(
            f'<text x="{x_px(step_number):.1f}" y="{HEIGHT_PX - 8}" text-anchor="{anchor}">'
            f"step {step_number}</text>"
        )
    parts.append("</svg>")
    return "".join(parts)
