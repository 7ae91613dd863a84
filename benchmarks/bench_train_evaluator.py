"""Time bsgal-train's LVIS evaluation against lvis-api, on made-up files of LVIS's shape.

An image has 12 objects and 300 predictions, boxes and masks, of 1203 categories of which few are in
an image, as in LVIS's validation set.

- Time: both read the same annotation file and get the same list of predictions, in turn in one
  process, each in one thread. Several numbers of images show that lvis-api's time is proportional
  to them (it visits each image once for each category and range of areas).
- Memory, and ours at the size of LVIS's validation set: every case in a process of its own, from
  files, which are shards for ours and a list in JSON for lvis-api. lvis-api is not run at that size
  (a quarter of an hour, and more memory than most machines have): its time there is extrapolated
  from the largest size compared, and called so.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _harness import require_tests, time_in_turn, write_result

N_CATEGORIES = 1203
IMAGE_HW = (480, 640)
OBJECTS_PER_IMAGE = 12
ABSENT_PER_IMAGE = 30
PREDICTIONS_PER_IMAGE = 300
IOU_TYPES = ("bbox", "segm")
# With a box, lvis-api would take the sizes of masks from the box.
UNUSED = {"bbox": "segmentation", "segm": "bbox"}


def main() -> None:
    """Make the data, check that both agree, time them, measure memory, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images; no number means much")
    parser.add_argument("--images", type=int, default=1000, help="compared with lvis-api, at most")
    parser.add_argument("--val-images", type=int, default=20_000, help="evaluated by ours alone")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing (default 3)")
    parser.add_argument("--alone", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        who, folder = arguments.alone
        print(json.dumps(evaluate_alone(who, Path(folder))))
        return
    if arguments.quick:
        arguments.images, arguments.val_images, arguments.rounds = 60, 300, 1
    require_tests("packages/bsgal-train/tests/evaluation")
    logging.disable(logging.WARNING)
    compared = [arguments.images // 4, arguments.images // 2, arguments.images]
    alone = [*compared, 2 * arguments.images, arguments.val_images]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for n_images in compared:
            folder = Path(temporary) / str(n_images)
            rows += compare(make_files(folder, n_images, with_list=True), arguments.rounds)
        for n_images in alone:
            folder = Path(temporary) / str(n_images)
            make_files(folder, n_images, with_list=n_images in compared)
            for who in (
                ("ours", "ours, no predictions", "lvis")
                if n_images in compared
                else (
                    "ours",
                    "ours, no predictions",
                )
            ):
                rows.append({"case": "alone", "n_images": n_images, **in_process(who, folder)})
                print(rows[-1], flush=True)
    write_result(
        "train_evaluator",
        rows=rows,
        headline=headline(rows, arguments.images, arguments.val_images),
        libraries=("numpy", "lvis", "pycocotools", "pyarrow"),
    )


def headline(rows: list[dict[str, Any]], n_images: int, n_val_images: int) -> dict[str, Any]:
    """Return the numbers to quote; those that are extrapolated say so."""
    times = {row["n_images"]: row for row in time_rows(rows)}
    peaks = peak_rows(rows)
    largest, val = times[n_images], peaks[n_val_images]["ours"]
    lvis_val_s = largest["lvis_s"] / n_images * n_val_images
    fewer = min(peaks)
    without = "ours, no predictions"
    grown = {
        who: (peaks[n_val_images][who]["peak_gib"] - peaks[fewer][who]["peak_gib"])
        / (n_val_images - fewer)
        * 2**20
        for who in ("ours", without)
    }
    return {
        "lvis_over_ours": round(largest["lvis_s"] / largest["ours_s"], 2),
        "max_abs_diff": max(row["max_abs_diff"] for row in rows if row["case"] == "compared"),
        "peak_gib": val["peak_gib"],
        "n_images": n_images,
        "n_val_images": n_val_images,
        "val_size_s": round(val["s"], 1),
        "lvis_over_ours_at_val_size_extrapolated": round(lvis_val_s / val["s"], 2),
        "lvis_s_per_image_largest_over_smallest": round(
            (largest["lvis_s"] / n_images) / (times[fewer]["lvis_s"] / fewer),
            3,
        ),
        "peak_kib_per_image": round(grown["ours"], 1),
        "of_which_annotation_file_kib_per_image": round(grown[without], 1),
    }


def time_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up boxes and masks of each number of images."""
    compared = [row for row in rows if row["case"] == "compared"]
    return [
        {
            "n_images": n_images,
            **{
                key: sum(row[key] for row in compared if row["n_images"] == n_images)
                for key in ("ours_s", "lvis_s")
            },
        }
        for n_images in dict.fromkeys(row["n_images"] for row in compared)
    ]


def peak_rows(rows: list[dict[str, Any]]) -> dict[int, dict[str, dict[str, Any]]]:
    """Return the rows measured in a process of their own, by number of images and by who."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["case"] == "alone":
            found.setdefault(row["n_images"], {})[row["who"]] = row
    return found


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table: seconds and peak memory of both by number of images."""
    times = {row["n_images"]: row for row in time_rows(result["rows"])}
    peaks = peak_rows(result["rows"])
    largest = times[max(times)]
    lines = [
        "| images x predictions | lvis-api, s | ours, s | ratio | lvis-api, GiB | ours, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for n_images, peak in peaks.items():
        ours_gib = f"{peak['ours']['peak_gib']:.2f}"
        if n_images in times:
            lvis_s, ours_s = times[n_images]["lvis_s"], times[n_images]["ours_s"]
            shown, lvis_gib = f"{lvis_s:.1f}", f"{peak['lvis']['peak_gib']:.2f}"
        else:
            lvis_s = largest["lvis_s"] / largest["n_images"] * n_images
            shown, lvis_gib, ours_s = f"({lvis_s:.0f})", "-", peak["ours"]["s"]
        lines.append(
            f"| {n_images} x {PREDICTIONS_PER_IMAGE} | {shown} | {ours_s:.1f} "
            f"| {lvis_s / ours_s:.1f} | {lvis_gib} | {ours_gib} |"
        )
    numbers = result["headline"]
    lines += [
        "",
        "Boxes and masks, one process and one thread each. Seconds in brackets are extrapolated: "
        "lvis-api's time per image is "
        f"{numbers['lvis_s_per_image_largest_over_smallest']:.2f} times as long for "
        f"{largest['n_images']} images as for {min(times)}. The largest difference of any number "
        f"is {numbers['max_abs_diff']:.0e}. Peak memory of ours grows by "
        f"{numbers['peak_kib_per_image']:.0f} KiB an image, "
        f"{numbers['of_which_annotation_file_kib_per_image']:.0f} KiB of it for the annotation "
        "file.",
    ]
    return {"speed": "\n".join(lines)}


def make_files(folder: Path, n_images: int, *, with_list: bool) -> Path:
    """Write an annotation file, and predictions as shards and also as a list, and return where."""
    from bsgal_train.evaluation import PredictionWriter

    if folder.exists():
        return folder
    folder.mkdir()
    rng = np.random.default_rng(n_images)
    document = make_document(rng, n_images)
    (folder / "lvis.json").write_text(json.dumps(document))
    kept = []
    with PredictionWriter(folder / "predictions") as writer:
        for predictions in make_predictions(rng, document):
            writer.add(predictions)
            kept += predictions if with_list else []
    if with_list:
        (folder / "predictions.json").write_text(json.dumps(kept))
    return folder


def in_process(who: str, folder: Path) -> dict[str, Any]:
    """Evaluate in a new process; return its time, its peak memory and what it found."""
    command = [sys.executable, __file__, "--alone", who, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"who": who, **found}


def evaluate_alone(who: str, folder: Path) -> dict[str, Any]:
    """Evaluate boxes and masks in this process; its libraries are not counted as memory."""
    from bsgal_train.evaluation import PredictionShards, evaluate_lvis

    logging.disable(logging.WARNING)
    path = folder / "lvis.json"
    if who == "lvis":
        import lvis  # noqa: F401 - not part of what is measured
    before, start = memory_bytes("VmRSS"), time.perf_counter()
    if who == "lvis":
        ap = []
        for iou_type in IOU_TYPES:
            given = json.loads((folder / "predictions.json").read_text())
            for prediction in given:
                del prediction[UNUSED[iou_type]]
            ap.append(run_lvis(path, given, iou_type)["ap"])
            del given
    else:
        shards = PredictionShards(folder / "predictions")
        result = evaluate_lvis(path, shards if who == "ours" else [])
        ap = [result.metrics[iou_type].ap or 0.0 for iou_type in IOU_TYPES]
    return {
        "s": time.perf_counter() - start,
        "peak_gib": round((memory_bytes("VmHWM") - before) / 2**30, 4),
        "ap": ap,
    }


def memory_bytes(name: str) -> int:
    """Return a line of this process's memory status, in bytes; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def compare(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Compare and time the two, boxes and masks each, on the same list of predictions."""
    from bsgal_train.evaluation import evaluate_lvis

    path = folder / "lvis.json"
    predictions = json.loads((folder / "predictions.json").read_text())
    n_images = len(predictions) // PREDICTIONS_PER_IMAGE
    rows = []
    for iou_type in IOU_TYPES:
        found: dict[str, Any] = {}
        # A list of its own for lvis-api, which writes into what it is given.
        own = [{key: item[key] for key in item if key != UNUSED[iou_type]} for item in predictions]

        def ours(iou_type: Any = iou_type, found: dict[str, Any] = found) -> None:
            found["ours"] = evaluate_lvis(path, predictions, [iou_type])

        def lvis(iou_type: str = iou_type, own: Any = own, found: Any = found) -> None:
            found["lvis"] = run_lvis(path, own, iou_type)

        timings = time_in_turn({"ours": ours, "lvis": lvis}, rounds=rounds, warmup=0)
        row = {
            "case": "compared",
            "n_images": n_images,
            "iou_type": iou_type,
            "ours_s": timings["ours"].median_s,
            "ours_quantiles_s": timings["ours"].quantiles_s(),
            "lvis_s": timings["lvis"].median_s,
            "lvis_quantiles_s": timings["lvis"].quantiles_s(),
            "max_abs_diff": max_abs_difference(found["ours"], iou_type, found["lvis"]),
            "ap": found["ours"].metrics[iou_type].ap,
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def run_lvis(path: Path, predictions: list[Any], iou_type: str) -> dict[str, float]:
    """Evaluate with lvis-api."""
    from lvis import LVIS, LVISEval, LVISResults

    # lvis 0.5.3 uses an alias that NumPy has removed.
    vars(np)["float"] = float
    truth = LVIS(str(path))
    evaluation = LVISEval(truth, LVISResults(truth, predictions), iou_type)
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
