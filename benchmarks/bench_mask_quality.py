"""How well each mask method finds real objects again.

Every annotated object of coco-mini's training photographs is cut out along its outline, scaled to
60% of a 256 px image and put, blended by the outline's coverage, before two backgrounds: a plain
one (a random colour, light in three cases of five, with a slight gradient and noise, as prompts for
plain backgrounds give) and a crop of another photograph (with objects of its own: hard on purpose).
Quoted is the mean intersection over union of the label mask with the outline, for the method's mask
as it comes and after the default clean-up.

Usage: nox -s bench -- mask_quality [--limit=N]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _harness import ROOT, require_tests, write_result
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bsgal_mask import BorderSegmenter, CleanUp, Segmenter, U2NetSegmenter, intersection_over_union

COCO_MINI = ROOT.parent / "shared" / "data" / "coco-mini"
SIDE_PX, OBJECT_PX, OUTLINE_SCALE = 256, 154, 2


@dataclass(frozen=True)
class Case:
    """One object before one background."""

    annotation_id: int
    source_area_px: float
    background: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]


def main() -> None:
    """Segment every composite with every method and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="use this many objects, evenly spread")
    options = parser.parse_args()
    if not COCO_MINI.is_dir():
        raise SystemExit(f"this benchmark needs the coco-mini photographs at {COCO_MINI}")
    require_tests(
        "packages/bsgal-mask/tests/test_border.py", "packages/bsgal-mask/tests/test_u2net.py"
    )
    methods: list[Segmenter] = [BorderSegmenter(), U2NetSegmenter()]
    rows = [row for case in cases(options.limit) for row in measure(case, methods)]
    headline = {
        f"iou_{method.name}_{background}": round(mean_of(rows, method.name, background), 4)
        for method in methods
        for background in ("plain", "real")
    }
    headline["n_objects"] = len({row["annotation_id"] for row in rows})
    libraries = ("numpy", "opencv-python-headless", "pillow", "onnxruntime", "bsgal-mask")
    write_result("mask_quality", rows=rows, headline=headline, libraries=libraries)


def measure(case: Case, methods: list[Segmenter]) -> Iterator[dict[str, Any]]:
    """Yield one row per method."""
    clean_up = CleanUp()
    for method in methods:
        (mask,) = method.segment([case.image], [""])
        alpha = np.rint(mask * 255).astype(np.uint8)
        cleaned = clean_up.apply(alpha, 128)
        yield {
            "annotation_id": case.annotation_id,
            "source_area_px": case.source_area_px,
            "background": case.background,
            "method": method.name,
            "iou": round(intersection_over_union(alpha >= 128, case.truth), 4),
            "iou_cleaned": round(intersection_over_union(cleaned >= 128, case.truth), 4),
        }


def mean_of(rows: list[dict[str, Any]], method: str, background: str) -> float:
    """Return the mean IoU of one method before one kind of background."""
    return statistics.fmean(
        row["iou"] for row in rows if (row["method"], row["background"]) == (method, background)
    )


def cases(limit: int | None) -> Iterator[Case]:
    """Yield every object before both backgrounds; each object draws from its own generator."""
    data = json.loads((COCO_MINI / "lvis_train.json").read_text())
    paths = {item["id"]: COCO_MINI / "images/train" / item["file_name"] for item in data["images"]}
    annotations = data["annotations"]
    step = 1 if limit is None else max(1, len(annotations) // limit)
    for annotation in annotations[::step][:limit]:
        rng = np.random.default_rng(annotation["id"])
        photograph = np.asarray(Image.open(paths[annotation["image_id"]]).convert("RGB"))
        cut, coverage = scaled_object(photograph, annotation)
        height, width = coverage.shape
        top, left = (int(rng.integers(8, SIDE_PX - side - 8 + 1)) for side in (height, width))
        others = [path for image_id, path in paths.items() if image_id != annotation["image_id"]]
        backgrounds = {
            "plain": plain_background(rng),
            "real": photographic_background(others[rng.integers(len(others))], rng),
        }
        truth = np.zeros((SIDE_PX, SIDE_PX), bool)
        truth[top : top + height, left : left + width] = coverage >= 0.5
        if not truth.any():
            continue
        for name, canvas in backgrounds.items():
            region = canvas[top : top + height, left : left + width]
            region += coverage[..., None] * (cut - region)
            image = np.clip(canvas, 0, 255).astype(np.uint8)
            yield Case(annotation["id"], annotation["area"], name, image, truth)


def scaled_object(
    photograph: NDArray[np.uint8], annotation: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the object's pixels (h, w, 3) and its outline's coverage (h, w) in [0, 1]."""
    height, width = photograph.shape[:2]
    outline = Image.new("L", (width * OUTLINE_SCALE, height * OUTLINE_SCALE))
    for polygon in annotation["segmentation"]:
        points = [OUTLINE_SCALE * coordinate for coordinate in polygon]
        ImageDraw.Draw(outline).polygon(points, fill=255)
    x, y, box_width, box_height = annotation["bbox"]
    box = (x, y, min(x + box_width + 1, width), min(y + box_height + 1, height))
    scale = OBJECT_PX / max(box[2] - box[0], box[3] - box[1])
    resolution_wh = (
        max(2, round((box[2] - box[0]) * scale)),
        max(2, round((box[3] - box[1]) * scale)),
    )
    method = Image.Resampling.BILINEAR
    cut = Image.fromarray(photograph).resize(resolution_wh, method, box=box)
    outline_box = tuple(OUTLINE_SCALE * side for side in box)
    coverage = outline.resize(resolution_wh, method, box=outline_box)
    return np.asarray(cut, np.float64), np.asarray(coverage, np.float64) / 255


def plain_background(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a colour with a slight gradient and noise."""
    colour = rng.uniform(200 if rng.random() < 0.6 else 0, 255, 3)
    y, x = np.mgrid[-0.5 : 0.5 : SIDE_PX * 1j, -0.5 : 0.5 : SIDE_PX * 1j]
    slope_x, slope_y = rng.uniform(-25, 25, 2)
    gradient = slope_x * x + slope_y * y
    noise = rng.normal(0, 2.5, (SIDE_PX, SIDE_PX, 3))
    return np.asarray(colour + gradient[..., None] + noise)


def photographic_background(path: Path, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random square crop of a photograph, as large as fits."""
    photograph = Image.open(path).convert("RGB")
    side = min(photograph.size)
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side))
    return np.array(crop.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), np.float64)


if __name__ == "__main__":
    main()
