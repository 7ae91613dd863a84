from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bsgal_train.report import Arm, JudgedInstance, JudgedStep, Report, render_page, write_page
from bsgal_train.report.chart import contribution_chart

PIXEL_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)


def instance(**changes: object) -> JudgedInstance:
    values: dict[str, object] = {
        "instance_id": "0045-0-00001",
        "category": "banana",
        "frequency": "r",
        "prompt": "a photo of a single banana",
        "picture_png": PIXEL_PNG,
        "contribution": 0.125,
        "times_judged": 4,
        "times_accepted": 3,
    }
    return JudgedInstance(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    scores = {"AP": 31.25, "APr": math.nan, "APc": 20.0, "APf": 40.0}
    return Report(
        title="A study",
        summary="What was done.",
        verdict_note="A verdict covers a batch.",
        arms=[
            Arm(name="without", steps=10, segm=scores, bbox=scores, seconds_per_step=0.5),
            Arm(
                name="with",
                steps=10,
                segm=scores,
                bbox=scores,
                accepted_share=0.75,
                seconds_per_step=1.5,
                cost_ratio=3.0,
            ),
        ],
        best_accepted=[instance()],
        worst_rejected=[instance(contribution=-0.5, times_accepted=0)],
        steps=[
            JudgedStep(step=1, contribution=0.2, threshold=-0.05, accepted=True),
            JudgedStep(step=2, contribution=-0.2, threshold=-0.05, accepted=False),
        ],
    )


def test_page_needs_no_network(report: Report) -> None:
    page = render_page(report)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources, "the pictures are missing"
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page
    assert "http" not in page


def test_page_shows_numbers_and_marks_undefined_ones(report: Report) -> None:
    page = render_page(report)
    for shown in ("31.2", "75 %", "3.00×", "accepted 3 of 4", "-0.500", "<td>–</td>"):
        assert shown in page


def test_text_from_outside_is_escaped(report: Report) -> None:
    hostile = instance(prompt="<script>alert(1)</script>", category="a<b")
    page = render_page(
        Report(
            title=report.title,
            summary=report.summary,
            verdict_note=report.verdict_note,
            arms=report.arms,
            best_accepted=[hostile],
        )
    )
    assert "<script" not in page
    assert "a&lt;b" in page


def test_chart_has_one_dot_per_finite_verdict(report: Report) -> None:
    unknown = JudgedStep(step=3, contribution=math.nan, threshold=-0.05, accepted=False)
    chart = contribution_chart([*report.steps, unknown])
    assert chart.count("<circle") == 2
    assert chart.count('class="accepted"') == 1


def test_nothing_judged_gives_no_chart() -> None:
    assert contribution_chart([]) == ""


def test_written_page_is_whole_and_leaves_no_temporary_file(report: Report, tmp_path: Path) -> None:
    path = write_page(report, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render_page(report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
