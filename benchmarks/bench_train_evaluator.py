"""Time bsgal-train's LVIS evaluation against lvis-api, on a made-up file of LVIS's shape.

Both read the same annotation file and get the same list of predictions. Boxes and masks, 300
predictions an image, 1203 categories of which few are in an image, as in LVIS's validation set.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _harness import peak_extra_bytes, require_tests, time_in_turn, write_result
from pycocotools import mask as coco_mask

from bsgal_train.evaluation import LvisResult, evaluate_lvis

N_CATEGORIES = 1203
IMAGE_HW = (480, 640)
OBJECTS_PER_IMAGE = 12
ABSENT_PER_IMAGE = 30
PREDICTIONS_PER_IMAGE = 300


def main() -> None:
    """Make the data, check that both agree, time them, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400, help="number of images (default 400)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing (default 3)")
    arguments = parser.parse_args()
    require_tests("packages/bsgal-train/tests/evaluation")
    logging.disable(logging.WARNING)
    # lvis 0.5.3 uses an alias that NumPy has removed.
    vars(np)["float"] = float
    rng = np.random.default_rng(0)
    document = make_document(rng, arguments.images)
    predictions = make_predictions(rng, document)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis.json"
        path.write_text(json.dumps(document))
        for iou_type in ("bbox", "segm"):
            rows.append(measure(path, predictions, iou_type, arguments.rounds))
            print(rows[-1])
        peak_bytes = peak_extra_bytes(lambda: evaluate_lvis(path, predictions))
    headline = {
        "lvis_over_ours": round(sum(r["lvis_s"] for r in rows) / sum(r["ours_s"] for r in rows), 2),
        "max_abs_diff": max(row["max_abs_diff"] for row in rows),
        "peak_gib": round(peak_bytes / 2**30, 3),
        "n_images": arguments.images,
        "n_predictions": len(predictions),
    }
    write_result(
        "train_evaluator",
        rows=rows,
        headline=headline,
        libraries=("numpy", "faster-coco-eval", "lvis", "pycocotools"),
    )


def measure(path: Path, predictions: list[Any], iou_type: Any, rounds: int) -> dict[str, Any]:
    """Compare and time the two on one IoU type."""
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
        "iou_type": iou_type,
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


def max_abs_difference(ours: LvisResult, iou_type: str, theirs: dict[str, float]) -> float:
    """Return the largest difference of any metric."""
    differences: list[float] = []
    for name, value in theirs.items():
        own = getattr(ours.metrics[iou_type], name)
        differences.append(abs((-1.0 if own is None else own) - value))
    return max(differences)


def make_document(rng: np.random.Generator, n_images: int) -> dict[str, Any]:
    """Make an annotation file whose categories are as unevenly frequent as LVIS's."""
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


def make_predictions(rng: np.random.Generator, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Shake the objects' boxes, and fill up with random ones of the categories that are judged."""
    own: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        own[annotation["image_id"]].append(annotation)
    predictions = []
    for image in document["images"]:
        objects = own[image["id"]]
        near = np.repeat([item["bbox"] for item in objects], 4, axis=0)
        near = near * (1 + rng.normal(0, 0.08, near.shape))
        boxes = np.concatenate([near, random_boxes(rng, PREDICTIONS_PER_IMAGE - len(near))])
        present = [item["category_id"] for item in objects]
        others = rng.choice(present + image["neg_category_ids"], len(boxes) - len(near)).tolist()
        category_ids = np.repeat(present, 4).tolist() + others
        for box, mask, category_id in zip(boxes, encoded(boxes), category_ids, strict=True):
            predictions.append(
                {
                    "image_id": image["id"],
                    "category_id": category_id,
                    "bbox": box.tolist(),
                    "score": float(rng.random()),
                    "segmentation": mask,
                }
            )
    return predictions


def random_boxes(rng: np.random.Generator, n_boxes: int) -> np.ndarray:
    """Return boxes (xywh) of shape (n_boxes, 4), sides between 8 and 200 px, inside the image."""
    sides = np.exp(rng.uniform(np.log(8), np.log(200), (n_boxes, 2)))
    corners = rng.uniform(0, 1, (n_boxes, 2)) * (np.array(IMAGE_HW[::-1]) - sides)
    return np.concatenate([corners, sides], axis=1)


def encoded(boxes: np.ndarray) -> list[dict[str, Any]]:
    """Encode the boxes' areas as masks."""
    rles = coco_mask.frPyObjects(np.asarray(boxes, dtype=np.float64), *IMAGE_HW)
    return [{"size": list(r["size"]), "counts": r["counts"].decode("ascii")} for r in rles]


if __name__ == "__main__":
    main()
