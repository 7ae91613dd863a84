"""The chart of contributions over training steps, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bsgal_train.inspect.report.content import JudgedStep
from bsgal_train.inspect.report.frame import Frame

MAX_DOTS = 1200
"""Of more verdicts, evenly chosen ones are drawn, so that a page of a long run still opens."""


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
