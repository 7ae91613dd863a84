"""Real objects, cut from photographs by their annotated outlines and put before plain colours."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from bsgal_mask import (
    BorderSegmenter,
    MissingModelError,
    U2NetSegmenter,
    build_pool,
    intersection_over_union,
)

COCO_MINI = Path(__file__).parents[4] / "shared/data/coco-mini"
N_OBJECTS, SIDE_PX, OBJECT_PX = 12, 192, 120


@pytest.fixture(scope="module")
def composites():
    """Return RGB images of one object each, and the objects' masks."""
    if not COCO_MINI.is_dir():
        pytest.skip(f"the photographs of coco-mini are not at {COCO_MINI}")
    data = json.loads((COCO_MINI / "lvis_val.json").read_text())
    names = {image["id"]: image["file_name"] for image in data["images"]}
    large = [item for item in data["annotations"] if item["area"] > 96 * 96]
    rng = np.random.default_rng(0)
    images, masks = [], []
    for index in rng.permutation(len(large))[:N_OBJECTS]:
        annotation = large[index]
        photograph = Image.open(COCO_MINI / "images/val" / names[annotation["image_id"]])
        outline = Image.new("L", photograph.size)
        for polygon in annotation["segmentation"]:
            ImageDraw.Draw(outline).polygon(polygon, fill=255)
        x, y, width, height = annotation["bbox"]
        box = (int(x), int(y), int(x + width) + 1, int(y + height) + 1)
        scale = OBJECT_PX / max(width, height)
        resolution_wh = max(1, round(width * scale)), max(1, round(height * scale))
        cut, alpha = (
            part.crop(box).resize(resolution_wh, Image.Resampling.BOX)
            for part in (photograph.convert("RGB"), outline)
        )
        backdrop = np.full((SIDE_PX, SIDE_PX, 3), rng.uniform(170, 245, 3))
        backdrop += rng.normal(0, 2, backdrop.shape) + np.linspace(0, 10, SIDE_PX)[:, None]
        image = Image.fromarray(np.clip(backdrop, 0, 255).astype(np.uint8))
        corner = ((SIDE_PX - resolution_wh[0]) // 2, (SIDE_PX - resolution_wh[1]) // 2)
        image.paste(cut, corner, alpha)
        mask = Image.new("L", (SIDE_PX, SIDE_PX))
        mask.paste(alpha, corner)
        images.append(np.asarray(image))
        masks.append(np.asarray(mask) >= 128)
    return images, masks


def mean_iou(segmenter, composites):
    images, truths = composites
    found = segmenter.segment(images, [""] * len(images))
    return np.mean(
        [
            intersection_over_union(mask >= 0.5, truth)
            for mask, truth in zip(found, truths, strict=True)
        ]
    )


def test_border_cuts_real_objects_from_plain_backgrounds(composites):
    assert mean_iou(BorderSegmenter(), composites) > 0.9


def test_u2netp_cuts_real_objects_from_plain_backgrounds(composites):
    try:
        segmenter = U2NetSegmenter()
    except MissingModelError as error:
        pytest.skip(str(error))
    assert mean_iou(segmenter, composites) > 0.85


def test_real_objects_become_a_pool(composites, make_image_set, tmp_path):
    images, truths = composites
    source = make_image_set({f"o{index}": image for index, image in enumerate(images[:4])})
    summary = build_pool(source, tmp_path / "pool", methods=[BorderSegmenter()], filters=[])
    assert summary.n_kept == 4
    rgba = cv2.imread(str(tmp_path / "pool/instances/7/o0.png"), cv2.IMREAD_UNCHANGED)
    assert (rgba[..., 3] >= 128).sum() == pytest.approx(truths[0].sum(), rel=0.2)
