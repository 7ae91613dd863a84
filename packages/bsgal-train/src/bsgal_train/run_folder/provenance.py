"""What a run was made from: hashes of its data and pool, their sizes, and versions."""

from __future__ import annotations

import platform
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from bsgal_paste import InstancePool
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.annotations.derived import file_sha256
from bsgal_train.run_folder.layout import RunFolder, read_json, write_json

__all__ = [
    "SCHEMA",
    "describe_annotations",
    "describe_inputs",
    "read_provenance",
    "save_provenance",
    "versions",
]

SCHEMA = "bsgal.provenance/1"

_LIBRARIES = (
    *("bsgal-train", "bsgal-score", "bsgal-paste"),
    *("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pycocotools"),
)


def versions() -> dict[str, str]:
    """Return the versions of what decides numbers; detectron2 goes by two names."""
    found = {"python": platform.python_version()}
    for name in (*_LIBRARIES, "detectron2", "pb1-detectron2"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_inputs(
    annotations: LvisAnnotations,
    annotations_sha256: str,
    validation: LvisAnnotations | None,
    pool: InstancePool | None,
) -> dict[str, Any]:
    """Describe what a run trains on and is evaluated on.

    Args:
        annotations: of the training images.
        annotations_sha256: of their file.
        validation: of the validation images.
        pool: the matched pool, if instances are pasted.
    """
    card = None if pool is None else pool.card()
    return {
        "training": describe_annotations(annotations, annotations_sha256),
        "validation": None
        if validation is None
        else describe_annotations(validation, file_sha256(validation.path)),
        "pool": None
        if card is None
        else {
            "manifest_sha256": card.manifest_sha256,
            "n_instances": card.n_kept,
            "instances_of_category": {str(key): n for key, n in sorted(card.counts.items())},
        },
    }


def save_provenance(folder: Path, inputs: dict[str, Any]) -> None:
    """Write `provenance.json` into a run's folder, or check that a resumed run has the same data.

    Raises:
        ValueError: The folder's run was made from other data or another pool.
    """
    earlier = read_provenance(folder)
    if earlier is not None:
        changed = [name for name in inputs if earlier["inputs"].get(name) != inputs[name]]
        if changed:
            raise ValueError(
                f"{folder} holds a run on other data: {', '.join(changed)} changed since it began "
                "(see provenance.json there); choose another output folder, or delete this one"
            )
    content = {"schema": SCHEMA, "inputs": inputs, "versions": versions()}
    write_json(RunFolder(folder).provenance, content, indent=1)


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Return what `save_provenance` wrote into a run's folder, None if it did not yet."""
    return read_json(RunFolder(folder).provenance)


def describe_annotations(annotations: LvisAnnotations, sha256: str) -> dict[str, Any]:
    """Describe an annotation file by its hash and its size."""
    groups: Counter[str] = Counter(category.frequency for category in annotations.categories)
    return {
        "sha256": sha256,
        "n_images": len(annotations.images),
        "n_instances": sum(category.instance_count for category in annotations.categories),
        "categories_of_group": {group: groups[group] for group in "rcf"},
    }
