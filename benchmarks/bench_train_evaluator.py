"""Time bsgal-train's LVIS evaluation against lvis-api, on a made-up file of LVIS's shape.

Both read the same annotation file and get the same list of predictions: boxes and masks, 300
predictions an image, 1203 categories of which few are in an image, as in LVIS's validation set.
Then ours evaluates as many images as LVIS's validation set has, from shards on disk, and its peak
memory is measured; lvis-api would need hours and more memory than most machines have.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _harness import peak_extra_bytes, require_tests, time_in_turn, write_result

N_CATEGORIES = 1203
IMAGE_HW = (480, 640)
OBJECTS_PER_IMAGE = 12
ABSENT_PER_IMAGE = 30
PREDICTIONS_PER_IMAGE = 300


def main() -> None:
    """Make the data, check that both agree, time them, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images; no number means much")
    parser.add_argument("--images", type=int, default=1000, help="compared with lvis-api")
    parser.add_argument("--val-images", type=int, default=20_000, help="evaluated by ours alone")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing (default 3)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.val_images, arguments.rounds = 60, 300, 1
    require_tests("packages/bsgal-train/tests/evaluation")
    logging.disable(logging.WARNING)
    # lvis 0.5.3 uses an alias that NumPy has removed.
    vars(np)["float"] = float
    rng = np.random.default_rng(0)
    document = make_document(rng, arguments.images)
    predictions = [one for image in make_predictions(rng, document) for one in image]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis.json"
        path.write_text(json.dumps(document))
        for iou_type in ("bbox", "segm"):
            rows.append(measure(path, predictions, iou_type, arguments.rounds))
            print(rows[-1])
        del predictions
        rows.append(measure_val_size(Path(folder), arguments.val_images))
        print(rows[-1])
    compared = rows[:2]
    ours_s, lvis_s = (sum(row[f"{name}_s"] for row in compared) for name in ("ours", "lvis"))
    headline = {
        "lvis_over_ours": round(lvis_s / ours_s, 2),
        "max_abs_diff": max(row["max_abs_diff"] for row in compared),
        "peak_gib": rows[2]["peak_gib"],
        "n_images": arguments.images,
        "n_val_images": arguments.val_images,
        "val_size_s": rows[2]["ours_s"],
    }
    write_result(
        "train_evaluator",
        rows=rows,
        headline=headline,
        libraries=("numpy", "lvis", "pycocotools", "pyarrow"),
    )


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the README's table: seconds of both, and ours at the size of LVIS's validation set."""
    lines = [
        "| images x predictions | compared | lvis-api, s | ours, s | ratio | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    size = f"{result['headline']['n_images']} x {PREDICTIONS_PER_IMAGE}"
    for row in result["rows"]:
        if row["case"] == "val_size":
            lines.append(
                f"| {row['n_images']} x {PREDICTIONS_PER_IMAGE} | boxes and masks | - "
                f"| {row['ours_s']:.0f} (peak {row['peak_gib']:.1f} GiB) | - | - |"
            )
        else:
            what = {"bbox": "boxes", "segm": "masks"}[row["case"]]
            lines.append(
                f"| {size} | {what} | {row['lvis_s']:.1f} | {row['ours_s']:.1f} "
                f"| {row['lvis_s'] / row['ours_s']:.1f} | {row['max_abs_diff']:.0e} |"
            )
    return {"speed": "\n".join(lines)}


def measure_val_size(folder: Path, n_images: int) -> dict[str, Any]:
    """Write shards of so many images, evaluate them, and take time and peak memory."""
    from bsgal_train.evaluation import PredictionShards, PredictionWriter, evaluate_lvis

    rng = np.random.default_rng(1)
    document = make_document(rng, n_images)
    path = folder / "val.json"
    path.write_text(json.dumps(document))
    start = time.perf_counter()
    with PredictionWriter(folder / "predictions") as writer:
        for predictions in make_predictions(rng, document):
            writer.add(predictions)
    write_s = time.perf_counter() - start
    del document
    shards = PredictionShards(folder / "predictions")
    found: dict[str, Any] = {}

    def evaluate() -> None:
        begin = time.perf_counter()
        found["result"] = evaluate_lvis(path, shards)
        found["s"] = time.perf_counter() - begin

    peak_bytes = peak_extra_bytes(evaluate)
    return {
        "case": "val_size",
        "n_images": n_images,
        "n_predictions": len(shards),
        "make_and_write_s": write_s,
        "ours_s": found["s"],
        "peak_gib": round(peak_bytes / 2**30, 3),
        "ap": found["result"].metrics["segm"].ap,
    }


def measure(path: Path, predictions: list[Any], iou_type: Any, rounds: int) -> dict[str, Any]:
    """Compare and time the two on one IoU type."""
    from bsgal_train.evaluation import evaluate_lvis

    ours = evaluate_lvis(path, predictions, [iou_type])
    difference = max_abs_difference(ours, iou_type, run_lvis(path, predictions, iou_type))
    timings = time_in_turn(
        {
            "ours": lambda: evaluate_lvis(path, predictions, [iou_type]),
            "lvis": lambda: run_lvis(path, predictions, iou_type),
        },
        rounds=rounds,
        warmup=0,
    )
    return {
        "case": iou_type,
        "ours_s": timings["ours"].median_s,
        "ours_quantiles_s": timings["ours"].quantiles_s(),
        "lvis_s": timings["lvis"].median_s,
        "lvis_quantiles_s": timings["lvis"].quantiles_s(),
        "max_abs_diff": difference,
        "ap": ours.metrics[iou_type].ap,
    }


def run_lvis(path: Path, predictions: list[Any], iou_type: str) -> dict[str, float]:
    """Evaluate with lvis-api."""
    from lvis import LVIS, LVISEval, LVISResults

    # It writes into what it is given; with a box it would take the sizes of masks from the box.
    unused = "bbox" if iou_type == "segm" else "segmentation"
    own = [{key: item[key] for key in item if key != unused} for item in predictions]
    truth = LVIS(str(path))
    evaluation = LVISEval(truth, LVISResults(truth, own), iou_type)
    evaluation.run()
    return {name.partition("@")[0].lower(): float(v) for name, v in evaluation.results.items()}


def max_abs_difference(ours: Any, iou_type: str, theirs: dict[str, float]) -> float:
    """Return the largest difference of any metric."""
    differences: list[float] = []
    for name, value in theirs.items():
        own = getattr(ours.metrics[iou_type], name)
        differences.append(abs((-1.0 if own is None else own) - value))
    return max(differences)


def make_document(rng: np.random.Generator, n_images: int) -> dict[str, Any]:
    """Make an annotation file whose categories are as unevenly frequent as LVIS's."""
    from pycocotools import mask as coco_mask

    share = 1.0 / np.arange(1, N_CATEGORIES + 1)
    share /= share.sum()
    categories = [
        {"id": i + 1, "name": str(i + 1), "frequency": "fcr"[min(2, i * 3 // N_CATEGORIES)]}
        for i in range(N_CATEGORIES)
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, n_images + 1):
        drawn = 1 + rng.choice(N_CATEGORIES, size=OBJECTS_PER_IMAGE, p=share)
        absent = set((1 + rng.choice(N_CATEGORIES, size=ABSENT_PER_IMAGE)).tolist())
        images.append(
            {
                "id": image_id,
                "height": IMAGE_HW[0],
                "width": IMAGE_HW[1],
                "neg_category_ids": sorted(absent - set(drawn.tolist())),
                "not_exhaustive_category_ids": drawn[:1].tolist() if rng.random() < 0.2 else [],
            }
        )
        boxes = random_boxes(rng, OBJECTS_PER_IMAGE)
        for box, mask, category_id in zip(boxes, encoded(boxes), drawn.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box.tolist(),
                    "area": float(coco_mask.area(mask)),
                    "segmentation": mask,
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories}


def make_predictions(
    rng: np.random.Generator, document: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """Yield each image's: objects' boxes, shaken, and random ones of the judged categories."""
    own: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        own[annotation["image_id"]].append(annotation)
    for image in document["images"]:
        objects = own[image["id"]]
        near = np.repeat([item["bbox"] for item in objects], 4, axis=0)
        near = near * (1 + rng.normal(0, 0.08, near.shape))
        boxes = np.concatenate([near, random_boxes(rng, PREDICTIONS_PER_IMAGE - len(near))])
        present = [item["category_id"] for item in objects]
        others = rng.choice(present + image["neg_category_ids"], len(boxes) - len(near)).tolist()
        category_ids = np.repeat(present, 4).tolist() + others
        yield [
            {
                "image_id": image["id"],
                "category_id": category_id,
                "bbox": box.tolist(),
                "score": float(rng.random()),
                "segmentation": mask,
            }
            for box, mask, category_id in zip(boxes, encoded(boxes), category_ids, strict=True)
        ]


def random_boxes(rng: np.random.Generator, n_boxes: int) -> np.ndarray:
    """Return boxes (xywh) of shape (n_boxes, 4), sides between 8 and 200 px, inside the image."""
    sides = np.exp(rng.uniform(np.log(8), np.log(200), (n_boxes, 2)))
    corners = rng.uniform(0, 1, (n_boxes, 2)) * (np.array(IMAGE_HW[::-1]) - sides)
    return np.concatenate([corners, sides], axis=1)


def encoded(boxes: np.ndarray) -> list[dict[str, Any]]:
    """Encode the boxes' areas as masks."""
    from pycocotools import mask as coco_mask

    rles = coco_mask.frPyObjects(np.asarray(boxes, dtype=np.float64), *IMAGE_HW)
    return [{"size": list(r["size"]), "counts": r["counts"].decode("ascii")} for r in rles]


if __name__ == "__main__":
    main()
