"""What `bsgal-paste compose` writes, read by the libraries that people read LVIS files with."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bsgal_paste import cli

CROWD_ID = 503


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs, the last with a crowd, each with pastes inside of its large object."""
    root = tmp_path_factory.mktemp("composed")
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        left, crowd = 5 + i, int(500 + i == CROWD_ID)
        images.append({"id": 70 + i, "width": 160, "height": 120, "file_name": f"{i}.png"})
        annotations.append(
            {"id": 500 + i, "image_id": 70 + i, "category_id": 1, "iscrowd": crowd,
             "bbox": [left, 5, 150 - left, 110],
             "segmentation": [[left, 5, 150, 5, 150, 115, left, 115]]}
        )  # fmt: skip
    categories = [{"id": c, "name": name, "frequency": "r"} for c, name in ((1, "a"), (2, "b"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "train.json").write_text(json.dumps(content))
    (root / "pool" / "b").mkdir(parents=True)
    disc = np.full((30, 30, 4), 200, dtype=np.uint8)
    disc[..., 3] = 255 * (np.hypot(*np.mgrid[-15:15, -15:15]) < 14)
    Image.fromarray(disc).save(root / "pool" / "b" / "disc.png")
    arguments = [
        "compose", "--pool", root / "pool", "--annotations", root / "train.json", "--image-root",
        root, "--out", root / "out", "--count-range", "3", "6", "--scale-range", "0.1", "0.2",
        "--image-format", "png",
    ]  # fmt: skip
    assert cli.main([str(argument) for argument in arguments]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def content(composed: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((composed / "annotations.json").read_text())
    return loaded


def drawn(segmentation: list[list[float]]) -> np.ndarray:
    rles = coco_mask.frPyObjects(segmentation, 120, 160)
    return np.asarray(coco_mask.decode(coco_mask.merge(rles)), dtype=bool)


def test_pycocotools_tells_objects_from_the_crowd(composed: Path, content: dict[str, Any]) -> None:
    coco = COCO(composed / "annotations.json")
    (crowd,) = coco.loadAnns(coco.getAnnIds(iscrowd=True))
    assert crowd["source_annotation_id"] == CROWD_ID
    assert len(coco.getAnnIds(iscrowd=False)) == len(content["annotations"]) - 1
    n_with_holes = 0
    for entry in coco.anns.values():
        mask = coco.annToMask(entry)
        assert mask.sum() == entry["area"]
        _, nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        n_with_holes += bool((nesting[0, :, 3] >= 0).any())
    assert n_with_holes > 0, "pastes lie inside of the large objects"


def test_the_evaluation_of_coco_asks_for_the_objects_only(composed: Path) -> None:
    coco = COCO(composed / "annotations.json")
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.9,
         "bbox": a["bbox"], "segmentation": coco.annToRLE(a)}
        for a in coco.loadAnns(coco.getAnnIds(iscrowd=False))
    ]  # fmt: skip
    evaluation = COCOeval(coco, coco.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    np.testing.assert_allclose(precision, 1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_detectron2_reads_it(
    composed: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "LINEAR", Image.BILINEAR, raising=False)
    monkeypatch.setitem(sys.modules, "detectron2._C", types.ModuleType("detectron2._C"))
    from detectron2.data.datasets.lvis import load_lvis_json

    records = load_lvis_json(
        str(composed / "annotations.json"), f"{composed}/", extra_annotation_keys=["iscrowd"]
    )
    entries = [entry for record in records for entry in record["annotations"]]
    assert len(entries) == len(content["annotations"])
    assert sum(entry["iscrowd"] for entry in entries) == 1, "its mapper leaves these out"
    for record in records:
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
    for entry, source in zip(entries, content["annotations"], strict=True):
        assert entry["category_id"] == source["category_id"] - 1
        assert drawn(entry["segmentation"]).sum() == source["area"]


def test_lvis_api_reads_it(composed: Path, content: dict[str, Any]) -> None:
    from lvis import LVIS

    lvis = LVIS(str(composed / "annotations.json"))
    assert lvis.get_img_ids() == [1, 2, 3, 4]
    assert lvis.get_cat_ids() == [1, 2]
    for entry in content["annotations"]:
        assert lvis.ann_to_mask(entry).sum() == entry["area"]
    assert content["images"][3]["not_exhaustive_category_ids"] == [1, 2], "the crowd's, too"


def test_supervision_reads_it(composed: Path, content: dict[str, Any]) -> None:
    supervision = pytest.importorskip("supervision")
    dataset = supervision.DetectionDataset.from_coco(
        str(composed / "images"), str(composed / "annotations.json"), force_masks=True
    )
    assert dataset.classes == ["a", "b"]
    assert len(dataset) == 4
    for path, _, detections in dataset:
        image = next(i for i in content["images"] if i["file_name"] == Path(path).name)
        sources = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert detections.data["iscrowd"].tolist() == [a["iscrowd"] for a in sources]
        assert detections.data["area"].tolist() == [a["area"] for a in sources]
        for mask, source in zip(detections.mask, sources, strict=True):
            # It draws the outlines' own pixels, too.
            assert not (drawn(source["segmentation"]) & ~mask).any()


def test_mmdetection_finds_what_it_looks_for(composed: Path, content: dict[str, Any]) -> None:
    """Its LVISV1Dataset, from `load_data_list` and `parse_data_info`, without the library."""
    assert len({entry["id"] for entry in content["annotations"]}) == len(content["annotations"])
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for image in content["images"]:
        name = image["coco_url"].replace("http://images.cocodataset.org/", "")
        assert (composed / name).is_file()
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        assert min(width, height) >= 1
        assert entry["area"] > 0
        assert left < sizes[entry["image_id"]][0]
        assert top < sizes[entry["image_id"]][1]
        assert entry["iscrowd"] == int(entry["source_annotation_id"] == CROWD_ID)
        assert all(len(points) >= 6 and len(points) % 2 == 0 for points in entry["segmentation"])
        assert entry["segmentation"]
