from __future__ import annotations

import json

import numpy as np
import pytest

from bsgal_paste import AnnotationError, NormalScale, ScaleStatistics, UniformScale


def lvis() -> dict:
    boxes = {1: [(10, 10), (20, 20)], 2: [(50, 8)], 3: [(40, 40), (0, 5)]}
    annotations = [
        {"category_id": c, "image_id": 1, "bbox": [0, 0, w, h]}
        for c, sizes in boxes.items()
        for w, h in sizes
    ]
    return {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations)],
        "categories": [
            {"id": c, "name": f"c{c}", "frequency": group}
            for c, group in enumerate("ffrrc", start=1)
        ],
    }


def test_statistics_are_of_the_square_root_of_the_area_share():
    statistics = ScaleStatistics.from_annotations(lvis())
    assert statistics.of(1).mean == pytest.approx(0.15)
    assert statistics.of(1).std == pytest.approx(0.05)
    assert statistics.of(1).count == 2
    assert statistics.of(2).mean == pytest.approx(0.2)
    assert statistics.of(2).std == 0


def test_a_box_without_area_does_not_count():
    assert ScaleStatistics.from_annotations(lvis()).of(3).count == 1


def test_a_crowd_does_not_count():
    content = lvis()
    content["annotations"][0]["iscrowd"] = 1
    assert ScaleStatistics.from_annotations(content).of(1).mean == pytest.approx(0.2)


def test_a_category_without_annotations_takes_those_of_its_frequency_group():
    statistics = ScaleStatistics.from_annotations(lvis())
    assert statistics.of(4) == statistics.of(3), "the only rare one with annotations"
    assert statistics.of(5) == statistics.groups["all"], "no common one has annotations"
    assert statistics.groups["f"].mean == pytest.approx((0.1 + 0.2 + 0.2) / 3)
    assert statistics.groups["all"].count == 4


def test_a_category_that_the_annotations_do_not_know_is_an_error():
    with pytest.raises(ValueError, match="category 77 is not in the annotations"):
        ScaleStatistics.from_annotations(lvis()).of(77)


def test_statistics_survive_the_disk(tmp_path):
    statistics = ScaleStatistics.from_annotations(lvis())
    statistics.save(tmp_path / "scales.json")
    assert ScaleStatistics.load(tmp_path / "scales.json") == statistics
    assert [path.name for path in tmp_path.iterdir()] == ["scales.json"]


def test_statistics_of_another_schema_are_refused(tmp_path):
    (tmp_path / "scales.json").write_text('{"schema": "other/9"}')
    with pytest.raises(ValueError, match=r"schema 'other/9', this version reads"):
        ScaleStatistics.load(tmp_path / "scales.json")


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda text: text.replace('"count": 2', '"count": 3', 1), "was changed since"),
        (lambda text: text.replace('"mean"', '"median"', 1), "was changed since"),
        (lambda text: text.replace('"categories"', '"kinds"'), "was changed since"),
        (lambda text: text[:40], "is not valid JSON"),
        (lambda text: "", "is not valid JSON"),
        (lambda text: "[]", "has schema None"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path, damaged, message):
    path = tmp_path / "scales.json"
    ScaleStatistics.from_annotations(lvis()).save(path)
    path.write_text(damaged(path.read_text()))
    with pytest.raises(ValueError, match=rf"scales\.json {message}"):
        ScaleStatistics.load(path)


def test_annotations_can_be_a_path(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(lvis()))
    by_path = ScaleStatistics.from_annotations(tmp_path / "a.json")
    assert by_path == ScaleStatistics.from_annotations(lvis())


def test_annotations_without_boxes_are_refused():
    with pytest.raises(AnnotationError, match="no box with an area"):
        ScaleStatistics.from_annotations({**lvis(), "annotations": []})


def test_real_statistics_agree_with_a_direct_computation(coco_mini):
    path = coco_mini / "lvis_train.json"
    raw = json.loads(path.read_text())
    areas = {image["id"]: image["width"] * image["height"] for image in raw["images"]}
    scales = [
        np.sqrt(a["bbox"][2] * a["bbox"][3] / areas[a["image_id"]])
        for a in raw["annotations"]
        if a["category_id"] == 1
    ]
    entry = ScaleStatistics.from_annotations(path).of(1)
    np.testing.assert_allclose((entry.mean, entry.std), (np.mean(scales), np.std(scales)))


def test_normal_scales_have_the_mean_and_spread_of_their_category():
    rule = NormalScale(statistics=ScaleStatistics.from_annotations(lvis()), min_side_px=0)
    drawn = rule.sample(np.full(20000, 1), (100, 100), np.random.default_rng(0))
    np.testing.assert_allclose((drawn.mean(), drawn.std()), (0.15, 0.05), rtol=0.02)
    constant = rule.sample(np.full(9, 2), (100, 100), np.random.default_rng(0))
    np.testing.assert_allclose(constant, 0.2)


def test_normal_scales_are_clipped_to_10_px_of_the_height_and_half_the_image():
    statistics = ScaleStatistics.from_annotations(lvis())
    rule = NormalScale(statistics=statistics, min_std=5)
    drawn = rule.sample(np.full(200, 1), (200, 100), np.random.default_rng(0))
    assert (drawn.min(), drawn.max()) == (10 / 200, 0.5)
    tiny = rule.sample(np.full(200, 1), (8, 8), np.random.default_rng(0))
    assert set(tiny) == {0.5}


def test_uniform_scales_stay_in_their_range():
    drawn = UniformScale().sample(np.full(500, 1), (10, 10), np.random.default_rng(0))
    assert 0.05 <= drawn.min() < 0.06
    assert 0.29 < drawn.max() <= 0.3


def test_impossible_scale_settings_are_refused():
    statistics = ScaleStatistics.from_annotations(lvis())
    with pytest.raises(ValueError, match="`max_scale`"):
        NormalScale(statistics=statistics, max_scale=0)
    with pytest.raises(ValueError, match="`scale_range` must be"):
        UniformScale(scale_range=(0.3, 0.1))
