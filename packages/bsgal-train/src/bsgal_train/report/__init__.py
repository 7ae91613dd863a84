"""The report page of a study: one HTML file that needs no network."""

from bsgal_train.report.content import (
    Arm,
    Fact,
    JudgedInstance,
    JudgedStep,
    Report,
    StageTime,
)
from bsgal_train.report.page import render_page, write_page

__all__ = [
    "Arm",
    "Fact",
    "JudgedInstance",
    "JudgedStep",
    "Report",
    "StageTime",
    "render_page",
    "write_page",
]
