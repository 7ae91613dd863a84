"""A small random LVIS file and predictions for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

Document = dict[str, Any]
Predictions = list[dict[str, Any]]

N_CATEGORIES = 7
SIDE_PX = 240


def encoded(box: np.ndarray, image: Document) -> dict[str, Any]:
    """Encode the filled ellipse inside a box (xywh), as far as it is in the image."""
    x, y, width, height = box
    first_x, first_y = max(int(x), 0), max(int(y), 0)
    end_x, end_y = int(x + width) + 1, int(y + height) + 1
    mask = np.zeros((image["height"], image["width"]), dtype=np.uint8, order="F")
    part = mask[first_y:end_y, first_x:end_x]
    rows = np.arange(first_y, first_y + part.shape[0])[:, None] + 0.5
    columns = np.arange(first_x, first_x + part.shape[1]) + 0.5
    part[:] = ((columns - x) / width * 2 - 1) ** 2 + ((rows - y) / height * 2 - 1) ** 2 <= 1
    rle = coco_mask.encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def random_document(seed: int) -> Document:
    rng = np.random.default_rng(seed)
    ids = list(range(1, N_CATEGORIES + 1))
    images: list[Document] = []
    annotations: list[Document] = []
    for image_id in range(1, 13):
        present = rng.choice(ids[:-1], size=2, replace=False).tolist()
        absent = [item for item in ids if item not in present and rng.random() < 0.6]
        image = {
            "id": image_id,
            "height": SIDE_PX,
            "width": SIDE_PX,
            "neg_category_ids": absent,
            "not_exhaustive_category_ids": present[:1] if rng.random() < 0.3 else [],
        }
        images.append(image)
        for category_id in rng.choice(present, size=4).tolist():
            box = np.concatenate([rng.uniform(0, 60, 2), np.exp(rng.uniform(2, 5.2, 2))])
            mask = encoded(box, image)
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
    categories = [
        {"id": item, "name": f"category {item}", "frequency": "rcf"[item % 3]} for item in ids
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def random_predictions(document: Document, seed: int) -> Predictions:
    """Shake the objects' boxes, now and then change the category, add boxes out of the blue."""
    rng = np.random.default_rng([seed, 1])
    images = {image["id"]: image for image in document["images"]}
    ids = [category["id"] for category in document["categories"]]
    drafts = []
    for annotation in document["annotations"]:
        for _ in range(3):
            box = np.array(annotation["bbox"]) * (1 + rng.normal(0, 0.1, 4))
            wrong = rng.random() < 0.2
            category_id = int(rng.choice(ids)) if wrong else annotation["category_id"]
            drafts.append((annotation["image_id"], category_id, box))
    for image in document["images"]:
        for _ in range(8):
            scale = [image["width"], image["height"]] * 2
            box = rng.uniform(0.0, 0.8, 4) * scale
            drafts.append((image["id"], int(rng.choice(ids)), box))
    predictions = []
    for image_id, category_id, box in drafts:
        box[2:] = np.maximum(box[2:], 1.0)
        predictions.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box.tolist(),
                # Two digits, so that scores are tied.
                "score": round(float(rng.random()), 2),
                "segmentation": encoded(box, images[image_id]),
            }
        )
    return predictions


def random_crowd(seed: int) -> tuple[Document, Predictions]:
    """Two categories, many objects on a grid of 4 px in each image, few different scores."""
    rng = np.random.default_rng([seed, 2])
    images: list[Document] = []
    annotations: list[Document] = []
    predictions: Predictions = []
    for image_id in range(1, 6):
        image = {
            "id": image_id,
            "height": 120,
            "width": 150,
            "neg_category_ids": [1],
            "not_exhaustive_category_ids": [2] if rng.random() < 0.3 else [],
        }
        images.append(image)
        corners = rng.integers(0, 10, (20, 2)) * 4
        boxes = np.concatenate([corners, rng.choice([16, 32, 40, 100], (20, 2))], axis=1)
        for box in boxes:
            x, y, width, height = box.tolist()
            right, low = x + width, y + height
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(rng.integers(1, 3)),
                "bbox": box.astype(float).tolist(),
                "area": float(width * height),
                "segmentation": [[x, y, x, low, right, low, right, y]],
            }
            annotations.append(annotation)
        shaken = boxes[rng.integers(0, len(boxes), 50)] + rng.integers(-1, 2, (50, 4)) * 4
        for box in np.maximum(shaken, [0, 0, 4, 4]):
            filled = coco_mask.frPyObjects(box[None].astype(np.float64), 120, 150)[0]
            predictions.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": box.astype(float).tolist(),
                    "score": int(rng.integers(0, 10)) / 10,
                    "segmentation": {**filled, "counts": filled["counts"].decode("ascii")},
                }
            )
    categories = [{"id": item, "name": str(item), "frequency": "rf"[item - 1]} for item in (1, 2)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    return document, [predictions[i] for i in rng.permutation(len(predictions)).tolist()]


@pytest.fixture
def make_crowd() -> Callable[[int], tuple[Document, Predictions]]:
    return random_crowd


@pytest.fixture
def make_document() -> Callable[[int], Document]:
    return random_document


@pytest.fixture
def make_predictions() -> Callable[[Document, int], Predictions]:
    return random_predictions


@pytest.fixture
def document() -> Document:
    return random_document(0)


@pytest.fixture
def predictions(document: Document) -> Predictions:
    return random_predictions(document, 0)
