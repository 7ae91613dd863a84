"""Category id 0, as COCO-like data sets of other origin have it, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_generate import ImageSet
from bsgal_generate import cli as generate_cli
from bsgal_mask import cli as mask_cli
from bsgal_paste import cli as paste_cli

CATEGORIES = [{"id": 0, "name": "umbrella"}, {"id": 1, "name": "pizza"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photograph with one object of category 0."""
    root = tmp_path_factory.mktemp("zero")
    pixels = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    (root / "photos").mkdir()
    Image.fromarray(pixels).save(root / "photos" / "a.png")
    annotations = {
        "images": [{"id": 0, "file_name": "a.png", "height": 160, "width": 200}],
        "annotations": [
            {
                "id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 40, 40], "area": 1600,
                "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
            }
        ],
        "categories": CATEGORIES,
    }  # fmt: skip
    (root / "lvis.json").write_text(json.dumps(annotations))
    return root


def test_category_0_is_generated_cut_out_and_pasted(data: Path) -> None:
    images, pool, out = data / "images", data / "pool", data / "out"
    command = ["run", "--categories", str(data / "lvis.json"), "--images-per-category", "2"]
    assert generate_cli.main([*command, "--num-inference-steps", "8", "--out", str(images)]) == 0
    rows = ImageSet.open(images).rows
    assert [(row.category_id, row.kind) for row in rows] == [(0, "object")] * 2 + [
        (1, "object")
    ] * 2
    assert mask_cli.main(["run", str(images), "--out", str(pool), "--quiet"]) == 0
    lines = (pool / "manifest.jsonl").read_text().splitlines()
    kept = [row for row in map(json.loads, lines) if row["status"] == "kept"]
    assert {row["category_id"] for row in kept} == {0, 1}
    command = ["compose", "--annotations", str(data / "lvis.json"), "--pool", str(pool)]
    command += ["--image-root", str(data / "photos"), "--out", str(out), "--count-range", "4", "5"]
    assert paste_cli.main(command) == 0
    composed = json.loads((out / "annotations.json").read_text())
    assert [category["id"] for category in composed["categories"]] == [0, 1]
    pasted = {a["category_id"] for a in composed["annotations"] if a.get("instance_id")}
    assert 0 in pasted


def test_scenes_beside_category_0_are_still_refused_by_the_cutter(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = data / "scenes"
    command = ["run", "--scenes", "--images-per-category", "1", "--num-inference-steps", "1"]
    assert generate_cli.main([*command, "--out", str(scenes)]) == 0
    assert mask_cli.main(["run", str(scenes), "--out", str(data / "none"), "--quiet"]) == 1
    assert "this is a scene" in capsys.readouterr().err
    # As version 0.1 marked it.
    manifest = scenes / "manifest.jsonl"
    row = json.loads(manifest.read_text())
    del row["kind"]
    manifest.write_text(json.dumps(row) + "\n")
    assert mask_cli.main(["run", str(scenes), "--out", str(data / "none"), "--quiet"]) == 1
    assert "this is a scene" in capsys.readouterr().err
