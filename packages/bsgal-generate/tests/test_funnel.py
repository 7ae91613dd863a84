from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bsgal_generate import ImageRow, ImageSet, funnel
from bsgal_generate._funnel import funnel_table
from bsgal_generate.errors import ImageSetError

ROW = ImageRow(
    sample_id="",
    category_id=12,
    category_name="apple",
    prompt_id="single",
    prompt="a photo of a single apple",
    negative_prompt=None,
    seed=0,
    model="m",
    scheduler="s",
    num_inference_steps=1,
    guidance_scale=1.0,
    height=1,
    width=1,
    file=None,
    sha256=None,
    status="ok",
    reason=None,
)
ATTEMPTS = [
    replace(ROW, sample_id="12-0"),
    replace(ROW, sample_id="12-1", status="blank"),
    replace(ROW, sample_id="12-1", attempt=1),
    replace(ROW, sample_id="12-2", status="flagged"),
    replace(ROW, sample_id="12-2", status="blank", attempt=1),
    replace(ROW, sample_id="45-0", category_id=45, category_name="banana"),
]
POOL = [
    {"sample_id": "12-0", "status": "kept", "reason": None},
    {"sample_id": "12-1", "status": "dropped", "reason": "area: 0.99 of the image"},
    {"sample_id": "12-2", "status": "dropped", "reason": "source: it is blank"},
]


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    return ImageSet(tmp_path, {}, ATTEMPTS)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "meta.json").write_text('{"schema": "bsgal.instance_pool/1"}')
    lines = [json.dumps(row) + "\n" for row in POOL]
    (tmp_path / "manifest.jsonl").write_text("".join(lines))
    return tmp_path


def test_every_stage_is_counted_per_category(image_set: ImageSet, pool: Path) -> None:
    apple, banana = funnel(image_set, pool)
    assert (apple.category_name, apple.n_samples, apple.n_drawn) == ("apple", 3, 5)
    assert apple.n_rejected == {"blank": 2, "flagged": 1}
    assert (apple.n_images, apple.n_kept, apple.n_dropped) == (2, 1, {"area": 1})
    assert (banana.n_images, banana.n_kept, banana.n_dropped) == (1, 0, {})


def test_without_a_pool_the_count_stops_at_the_images(image_set: ImageSet) -> None:
    apple, _ = funnel(image_set)
    assert (apple.n_images, apple.n_kept) == (2, None)


def test_table_has_a_line_per_category_and_the_sums(image_set: ImageSet, pool: Path) -> None:
    lines = [line.split() for line in funnel_table(funnel(image_set, pool)).splitlines()]
    assert lines[1][:5] == ["12", "5", "2", "1", "apple:"]
    assert lines[2] == ["45", "1", "1", "0", "banana"]
    assert lines[3] == ["all", "6", "3", "1"]


def test_folder_that_is_no_pool_is_refused(image_set: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="is not an instance pool"):
        funnel(image_set, tmp_path)
    (tmp_path / "meta.json").write_text('{"schema": "bsgal.image_set/1"}')
    with pytest.raises(ImageSetError, match=r"reads 'bsgal\.instance_pool/1' only"):
        funnel(image_set, tmp_path)
    (tmp_path / "meta.json").write_text('{"schema": "bsgal.instance_pool/1"}')
    (tmp_path / "manifest.jsonl").write_text('{"sample_id": "a"}\n')
    with pytest.raises(ImageSetError, match="line 1: it lacks 'status'"):
        funnel(image_set, tmp_path)
