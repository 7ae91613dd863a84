"""Lay a report out as one HTML file: pictures inside, no script from elsewhere, no network."""

from __future__ import annotations

import base64
import math
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from bsgal_train.report.chart import contribution_chart
from bsgal_train.report.content import Report


def _number(value: float | None, digits: int = 1) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


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
    environment.filters.update(number=_number, share=_share, duration=_duration, data_uri=_data_uri)
    template = resources.files("bsgal_train.report").joinpath("page.html.jinja").read_text("utf-8")
    chart = Markup(contribution_chart(report.steps))
    return environment.from_string(template).render(report=report, chart=chart)


def write_page(report: Report, path: Path) -> Path:
    """Write the page, whole or not at all, and return its path."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render_page(report), encoding="utf-8")
    temporary.replace(path)
    return path
