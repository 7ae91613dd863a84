"""Lay a report out as one HTML file: pictures and script inside, no network."""

from __future__ import annotations

import base64
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bsgal_train.inspect.report.charts import contribution_chart, histogram_chart, line_chart
from bsgal_train.inspect.report.content import Report
from bsgal_train.run_folder.layout import write_text


def _number(value: float | None, digits: int = 1) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


def _sortable(value: float | None) -> str:
    """Write a number for the sorting script, which puts empty ones last."""
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def render_page(report: Report) -> str:
    """Return the page as a string of HTML. All text is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=_number, share=_share, sortable=_sortable, duration=_duration, data_uri=_data_uri
    )
    return environment.from_string(_part("page.html.jinja")).render(
        report=report, charts=_charts(report), sort_script=Markup(_part("sort.js"))
    )


def _part(name: str) -> str:
    return resources.files("bsgal_train.inspect.report").joinpath(name).read_text("utf-8")


def _charts(report: Report) -> dict[str, Any]:
    """Draw what there is to draw; an empty string stands for nothing."""
    return {
        "verdicts": Markup(contribution_chart(report.steps)),
        "loss": Markup(line_chart(report.losses, label="loss over training steps")),
        "evaluations": Markup(
            line_chart(report.evaluations, label="average precision over training steps")
        ),
        "acceptance": Markup(
            line_chart(
                report.acceptance, label="accepted share over training steps", y_range=(0.0, 1.0)
            )
        ),
        "histograms": [
            (histogram.title, Markup(histogram_chart(histogram))) for histogram in report.histograms
        ],
    }


def write_page(report: Report, path: Path) -> Path:
    """Write the page, whole or not at all, and return its path."""
    write_text(path, render_page(report))
    return path
