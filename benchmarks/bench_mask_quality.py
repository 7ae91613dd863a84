"""How well each mask method finds objects again whose outlines are known.

Every annotated object of coco-mini's training photographs is cut out along its outline, scaled to
60% of a 256 px image and put, blended by the outline's coverage, before two backgrounds: `plain` (a
random colour, light in three cases of five, with a slight gradient and noise, as prompts for plain
backgrounds give) and `real` (a crop of another photograph, with objects of its own: hard on
purpose). `builtin` are renders of the drawings that the built-in text-to-image model was trained
on, as it was shown them. Quoted is the mean intersection over union of the label mask with the
outline, for the method's mask as it comes, and for u2net also with the coverage of edge pixels read
from their colours, as a pool gets it (border does this itself); `agreement` is the choice by
agreement between the two methods, over the images that it keeps.

Methods are run one after the other and each mask is kept in a file beside the result until all are
there, so a run that was stopped continues. Nothing is timed.

Usage: nox -s bench -- mask_quality [--quick] [--limit=N]
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import json
import statistics
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from _harness import RESULTS, ROOT, require_tests, write_result
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Labels: TypeAlias = dict[str, NDArray[np.bool_]]

COCO_MINI = ROOT.parent / "shared" / "data" / "coco-mini"
SIDE_PX, OBJECT_PX, OUTLINE_SCALE = 256, 154, 2
BACKGROUNDS = ("plain", "real", "builtin")
RENDERS_PER_DRAWING = 5
QUICK_LIMIT = 16
AGREEMENT, WITH_EDGES = "agreement", "_edges"
TESTS = ("test_border.py", "test_edges.py", "test_u2net.py")


@dataclass(frozen=True)
class Case:
    """One object before one background."""

    case_id: str
    source_area_px: float | None
    background: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]


def main() -> None:
    """Segment every composite with every method and write the result."""
    from bsgal_mask import AgreementChoice, BorderSegmenter, U2NetSegmenter

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="use this many objects, evenly spread")
    parser.add_argument("--quick", action="store_true", help="a few objects; writes no result")
    options = parser.parse_args()
    limit = QUICK_LIMIT if options.quick and options.limit is None else options.limit
    if not COCO_MINI.is_dir():
        raise SystemExit(f"this benchmark needs the coco-mini photographs at {COCO_MINI}")
    require_tests(*(f"packages/bsgal-mask/tests/{name}" for name in TESTS))
    methods = [BorderSegmenter(), U2NetSegmenter(n_threads=1)]
    partial = RESULTS / ".mask_quality.partial.jsonl"
    found: dict[str, Labels] = {}
    for method in methods:
        found |= segment_all(method, limit, partial)
    choice = AgreementChoice()
    rows = list(rows_of(found, limit, choice))
    headline: dict[str, float | int | str] = {}
    for method in (*found, AGREEMENT):
        for background in BACKGROUNDS:
            kept = select(rows, method, background)
            headline[f"iou_{method}_{background}"] = round(mean_iou(kept), 4)
    headline["n_images"] = len({row["case"] for row in rows})
    if limit is not None:
        print(json.dumps(headline, indent=1))
        print("not written: a result counts all objects")
        return
    libraries = ("numpy", "opencv-python-headless", "pillow", "onnxruntime", "bsgal-mask")
    write_result("mask_quality", rows=rows, headline=headline, libraries=libraries)
    partial.unlink()


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table: mean IoU per method and background, and its tail."""
    rows = result["rows"]
    lines = [
        "| method | plain background | another photograph | built-in drawings |",
        "|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for background in BACKGROUNDS:
            everything = [
                row for row in rows if (row["method"], row["background"]) == (method, background)
            ]
            kept = select(rows, method, background)
            cell = f"{mean_iou(kept):.3f}"
            if method == AGREEMENT:
                cell += f" ({len(kept) / len(everything):.0%} kept)"
            else:
                good = statistics.fmean(row["iou"] >= 0.9 for row in kept)
                cell += f" ({good:.0%} above 0.9)"
            cells.append(cell)
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return {"iou": "\n".join(lines)}


def segment_all(method: Any, limit: int | None, partial: Path) -> dict[str, Labels]:
    """Return the label mask of every case by case, from an earlier run's file where it has them.

    There is a second set, with refined edges, for a method that does not refine them itself.
    """
    from bsgal_mask import Edges

    settings = json.dumps([method.name, dict(method.config())], sort_keys=True)
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    known = {entry["case"]: entry for entry in entries(partial) if entry["key"] == key}
    variants = [method.name]
    if not method.config().get("edge_from_colours"):
        variants.append(method.name + WITH_EDGES)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a") as lines:
        for number, case in enumerate(cases(limit)):
            if case.case_id not in known:
                (mask,) = method.segment([case.image], [""])
                masks = mask, Edges().refined(case.image, mask)
                packed = [pack(np.rint(soft * 255) >= 128) for soft in masks]
                known[case.case_id] = {"key": key, "case": case.case_id, "masks": packed}
                lines.write(json.dumps(known[case.case_id]) + "\n")
                lines.flush()
            if number % 100 == 0:
                print(f"{method.name}: {number} images", flush=True)
    return {
        variant: {case: unpack(entry["masks"][index]) for case, entry in known.items()}
        for index, variant in enumerate(variants)
    }


def entries(partial: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of the file that holds an unfinished run's masks."""
    if partial.is_file():
        for line in partial.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def pack(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask (H, W) as small JSON values."""
    bits = base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()
    return {"shape": list(mask.shape), "bits": bits}


def unpack(packed: dict[str, Any]) -> NDArray[np.bool_]:
    """Return the mask that `pack` packed."""
    height, width = packed["shape"]
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8)
    return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


def rows_of(found: dict[str, Labels], limit: int | None, choice: Any) -> Iterator[dict[str, Any]]:
    """Yield one row per case and method, and one for the choice between the methods."""
    from bsgal_mask import Candidates, intersection_over_union

    for case in cases(limit):
        labels = {method: masks[case.case_id] for method, masks in found.items()}
        ious = {
            method: round(intersection_over_union(label, case.truth), 4)
            for method, label in labels.items()
        }
        methods = {name: label for name, label in labels.items() if WITH_EDGES not in name}
        candidates = Candidates(image=case.image, category_name="", labels=methods)
        (chosen,) = choice.choose([candidates])
        common = {
            "case": case.case_id,
            "source_area_px": case.source_area_px,
            "background": case.background,
        }
        for method, iou in ious.items():
            yield common | {"method": method, "iou": iou, "is_kept": True}
        yield common | {
            "method": AGREEMENT,
            "iou": ious.get(chosen.method + WITH_EDGES, ious[chosen.method]),
            "is_kept": chosen.reason is None,
        }


def select(rows: list[dict[str, Any]], method: str, background: str) -> list[dict[str, Any]]:
    """Return the kept rows of one method before one kind of background."""
    wanted = (method, background, True)
    return [row for row in rows if (row["method"], row["background"], row["is_kept"]) == wanted]


def mean_iou(rows: list[dict[str, Any]]) -> float:
    """Return the mean intersection over union of some rows; 0 for none."""
    return statistics.fmean(row["iou"] for row in rows) if rows else 0.0


def cases(limit: int | None) -> Iterator[Case]:
    """Yield every photographed object before both backgrounds, then the drawings."""
    yield from photographed(limit)
    yield from drawn(limit)


def drawn(limit: int | None) -> Iterator[Case]:
    """Yield renders of the built-in drawings; their coverage shows between black and white."""
    sys.path.insert(0, str(ROOT / "models" / "tiny_generator"))
    from renders import render, sample_appearance

    from bsgal_train.builtin_dataset.sprites import load_sprites

    sprites = [
        (category_id, number, sprite)
        for category_id, drawings in load_sprites().items()
        for number, sprite in enumerate(drawings)
    ]
    n_renders = RENDERS_PER_DRAWING if limit is None else 1
    for category_id, number, sprite in sprites[:limit]:
        for index in range(n_renders):
            look = sample_appearance(np.random.default_rng([category_id, number, index]))
            black, white = (
                render(
                    sprite,
                    dataclasses.replace(look, background_rgb=(grey,) * 3, background_slope=0.0),
                )
                for grey in (0.0, 1.0)
            )
            background_share = (white.astype(float) - black).mean(axis=2) / 255
            yield Case(
                case_id=f"drawing-{category_id}-{number}-{index}",
                source_area_px=None,
                background="builtin",
                image=render(sprite, look),
                truth=background_share <= 0.5,
            )


def photographed(limit: int | None) -> Iterator[Case]:
    """Yield every annotated object before both backgrounds, each from its own generator."""
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
            yield Case(f"{name}-{annotation['id']}", annotation["area"], name, image, truth)


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
