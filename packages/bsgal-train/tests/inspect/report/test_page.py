from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bsgal_train.inspect.report import (
    Arm,
    CategoryRow,
    JudgedInstance,
    JudgedStep,
    Line,
    Report,
    ScoreHistogram,
    render_page,
    write_page,
)
from bsgal_train.inspect.report.charts import (
    MAX_DOTS,
    contribution_chart,
    histogram_chart,
    line_chart,
)

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


def test_text_in_charts_and_the_category_table_is_escaped(report: Report) -> None:
    hostile = "<script>alert(1)</script>"
    row = CategoryRow(
        category_id=1,
        name=hostile,
        frequency="r",
        n_objects=2,
        segm_ap=10.0,
        segm_ap50=math.nan,
        bbox_ap=12.0,
        n_judged=0,
        n_accepted=0,
    )
    line = Line(name=hostile, style="ink", points=[(1, 0.5), (2, 0.25)])
    page = render_page(
        Report(title="t", summary="s", categories=[row], losses=[line], notes=[hostile])
    )

    assert hostile not in page
    assert page.count("<script>") == 1
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3


def test_chart_has_one_dot_per_finite_verdict(report: Report) -> None:
    unknown = JudgedStep(step=3, contribution=math.nan, threshold=-0.05, accepted=False)
    chart = contribution_chart([*report.steps, unknown])
    assert chart.count("<circle") == 2
    assert chart.count('class="accepted"') == 1


def test_nothing_to_draw_gives_no_chart() -> None:
    assert contribution_chart([]) == ""
    assert line_chart([], label="nothing") == ""
    assert line_chart([Line(name="a", style="ink", points=[(1, math.nan)])], label="n") == ""


def test_a_long_run_is_thinned_evenly() -> None:
    steps = [
        JudgedStep(step=i, contribution=0.1, threshold=0.0, accepted=True)
        for i in range(3 * MAX_DOTS)
    ]
    chart = contribution_chart(steps)
    assert MAX_DOTS / 2 < chart.count("<circle") <= MAX_DOTS
    assert "step 0:" in chart


def test_a_line_keeps_its_finite_points_inside_the_frame() -> None:
    line = Line(name="rare", style="r", points=[(10, 0.0), (20, math.inf), (30, 1.0)])
    chart = line_chart([line], label="share", y_range=(0.0, 1.0))
    assert 'class="line r" points="48.0,192.0 708.0,26.0"' in chart
    assert "step 10" in chart
    assert "step 30" in chart


def test_a_histogram_stacks_rejected_on_accepted() -> None:
    drawing = histogram_chart(
        ScoreHistogram(
            title="rare", edges=[-1, 0, 1], n_accepted=[1, 4], n_rejected=[3, 0], threshold=0.0
        )
    )
    bars = re.findall(
        r'<rect class="(\w+)" .* y="([\d.]+)" .*? height="([\d.]+)"', drawing.replace("><", ">\n<")
    )
    assert [outcome for outcome, _, _ in bars] == ["accepted", "rejected", "accepted"]
    (_, first_top, _), (_, second_top, second_height), (_, _, full_height) = bars
    assert float(second_top) + float(second_height) == pytest.approx(float(first_top), abs=0.11)
    assert float(full_height) == 170 - 12 - 28


def test_written_page_is_whole_and_leaves_no_temporary_file(report: Report, tmp_path: Path) -> None:
    path = write_page(report, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render_page(report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
