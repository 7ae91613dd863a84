"""What the files say, read in the plainest way and without a check: the oracle of legal edits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def digest(pixels: Any) -> str:
    """Return what stands for an array in a result."""
    array = np.ascontiguousarray(pixels)
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def pixels_of(path: Path, mode: str) -> str:
    """Return what stands for a picture."""
    with Image.open(path) as picture:
        return digest(np.asarray(picture.convert(mode)))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a manifest; a torn last line is left out."""
    content = path.read_bytes()
    *whole, last = content.split(b"\n")
    rows = [json.loads(line.decode()) for line in whole]
    try:
        row = json.loads(last.decode())
    except ValueError:
        return rows
    return [*rows, row] if isinstance(row, dict) else rows


def last_of_each(rows: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the last row of every id, in the place of its first."""
    return list({row[key]: row for row in rows}.values())


def image_set(root: Path) -> Any:
    """Return the rows and pictures of an image set, and what its meta file says."""
    meta = json.loads((root / "meta.json").read_text())
    rows = []
    for row in last_of_each(lines_of(root / "manifest.jsonl"), "sample_id"):
        row = {"kind": "object", "attempt": 0} | row
        picture = pixels_of(root / row["file"], "RGBA") if row["file"] else None
        rows.append([{key: row[key] for key in IMAGE_FIELDS}, picture])
    return {"rows": rows, "meta": {key: meta.get(key) for key in META_KEYS}}


IMAGE_FIELDS = (
    "sample_id", "category_id", "category_name", "kind", "prompt_id", "prompt", "negative_prompt",
    "seed", "attempt", "model", "scheduler", "num_inference_steps", "guidance_scale", "height",
    "width", "file", "sha256", "status", "reason",
)  # fmt: skip
META_KEYS = ("model",)


def categories(path: Path) -> Any:
    """Return the categories of a category file."""
    text = path.read_bytes().decode("utf-8-sig")
    if text.lstrip()[:1] not in ("{", "["):
        names = [line.strip() for line in text.split("\n")]
        kept = [name for name in names if name and not name.startswith("#")]
        return [[number, name, [], ""] for number, name in enumerate(kept, 1)]
    document = json.loads(text)
    entries = document["categories"] if isinstance(document, dict) else document
    return sorted(
        [e["id"], e["name"], e.get("synonyms") or [], (e.get("def") or "").strip()] for e in entries
    )


def prompts(folder: Path) -> Any:
    """Return the prompts of a folder by category."""
    found = {}
    for path in folder.glob("*.txt"):
        lines = [line.strip() for line in path.read_bytes().decode("utf-8-sig").split("\n")]
        found[path.stem] = [line for line in lines if line and not line.startswith("#")]
    return found


def pool_rows(root: Path) -> list[dict[str, Any]]:
    """Return the rows of a pool that count."""
    return last_of_each(lines_of(root / "manifest.jsonl"), "instance_id")


def pool(root: Path) -> Any:
    """Return the instances of a pool in order, with their pictures."""
    kept = [row for row in pool_rows(root) if row["status"] == "kept"]
    return [
        [r["instance_id"], r["category_id"], r["category_name"], r.get("label_mask_threshold", 128),
         pixels_of(root / r["file"], "RGBA")]
        for r in sorted(kept, key=lambda row: (row["category_id"], row["instance_id"]))
    ]  # fmt: skip


def outcomes(root: Path) -> Any:
    """Return what became of each sample."""
    return {
        row["sample_id"]: "kept" if row["status"] == "kept" else row["reason"].partition(":")[0]
        for row in lines_of(root / "manifest.jsonl")
    }


def mask_of(segmentation: Any, height: int, width: int) -> Any:
    """Return the bool mask of a segmentation."""
    if isinstance(segmentation, dict):
        encoded = segmentation
        if isinstance(segmentation["counts"], list):
            encoded = coco_mask.frPyObjects(segmentation, height, width)
    else:
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return np.asarray(coco_mask.decode(encoded), dtype=bool)


def annotated(root: Path) -> Any:
    """Return the photographs of an annotation file with their categories and masks."""
    document = json.loads((root / "lvis.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    found = []
    for image in document["images"]:
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        masks = [mask_of(a["segmentation"], image["height"], image["width"]) for a in own]
        entries = [
            [names[a["category_id"]], a["category_id"], digest(mask)]
            for a, mask in zip(own, masks, strict=True)
            if mask.any()
        ]
        name = image.get("file_name") or image["coco_url"].split("/")[-1]
        found.append([image["id"], pixels_of(root / "photos" / name, "RGB"), entries])
    return found
