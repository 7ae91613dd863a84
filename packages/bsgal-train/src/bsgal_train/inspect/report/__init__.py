"""Report pages of runs and of the demo: one HTML file that needs no network."""

from bsgal_train.inspect.report.content import (
    Arm,
    CategoryRow,
    Fact,
    JudgedInstance,
    JudgedStep,
    Line,
    MetricsRow,
    RejectedInstance,
    Rejections,
    Report,
    ScoreHistogram,
    StageTime,
)
from bsgal_train.inspect.report.page import render_page, write_page
from bsgal_train.inspect.report.run_report import run_report

__all__ = [
    "Arm",
    "CategoryRow",
    "Fact",
    "JudgedInstance",
    "JudgedStep",
    "Line",
    "MetricsRow",
    "RejectedInstance",
    "Rejections",
    "Report",
    "ScoreHistogram",
    "StageTime",
    "render_page",
    "run_report",
    "write_page",
]
