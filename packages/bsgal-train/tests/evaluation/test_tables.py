from __future__ import annotations

from typing import Any

from bsgal_train.evaluation import category_table, evaluate_lvis, summary_table


def test_summary_has_a_line_for_each_iou_type_and_names_the_protocol(
    document: dict[str, Any], predictions: list[dict[str, Any]]
) -> None:
    result = evaluate_lvis(document, predictions)
    header, *lines, footer = summary_table(result).splitlines()
    assert header.split()[:3] == ["AP", "AP50", "AP75"]
    assert [line.split()[0] for line in lines] == ["bbox", "segm"]
    apr = result.metrics["segm"].apr
    assert apr is not None
    assert lines[1].split()[1 + header.split().index("APr")] == f"{100 * apr:.1f}"
    assert footer.startswith("protocol lvis (300 detections per image); 12 images, 48 objects")


def test_undefined_numbers_are_dashes(document: dict[str, Any]) -> None:
    for category in document["categories"]:
        category["frequency"] = "f"
    header, line, _ = summary_table(evaluate_lvis(document, [], ["bbox"])).splitlines()
    assert line.split()[1 + header.split().index("APr")] == "-"


def test_categories_without_object_and_prediction_are_left_out(document: dict[str, Any]) -> None:
    result = evaluate_lvis(document, [], ["bbox"])
    n_shown = sum(item.n_instances > 0 for item in result.categories)
    assert 0 < n_shown < len(result.categories)
    assert len(category_table(result).splitlines()) == 1 + n_shown


def test_columns_are_aligned(document: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    lines = category_table(evaluate_lvis(document, predictions)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:3] == ["id", "category", "group"]
