"""Mutated annotation files: each is refused with a clear error, or used without harm."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

N_CASES = 2000
SEED = 11
MEMORY_BYTES = 8 << 30
SECONDS = 300
BAD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 0.5, -0.5, 1e9, -1e9, 1e30, 1e308,
    float("nan"), float("inf"), "", "x", "0", "\0", "\ud800", "é", "a" * 999, "../x.png",
    [], [[]], [0], [[0]], [None], ["x"], [1, 2, 3, 4], [float("nan")] * 4, {}, {"size": [8, 10]},
    {"size": [8, 10], "counts": ""}, {"size": [8, 10], "counts": [80]}, {"x": 1},
]  # fmt: skip


def document() -> dict[str, Any]:
    """Return a good file: polygons, and run lengths of both kinds."""
    square = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]
    segmentations = [
        square,
        {"size": [8, 10], "counts": [9, 3, 68]},
        {"size": [8, 10], "counts": "93T2"},
    ]
    return {
        "info": {"frequency_limits": {"r": [1, 1], "c": [2, 2], "f": [3, None]}},
        "images": [
            {
                "id": number,
                "file_name": f"{number}.png",
                "coco_url": f"http://host/{number}.png",
                "height": 8,
                "width": 10,
                "neg_category_ids": [4],
                "not_exhaustive_category_ids": [],
            }
            for number in range(3)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 20,
                "bbox": [1.0, 1.0, 4.0, 4.0],
                "area": 16.0,
                "segmentation": segmentation,
            }
            for number, segmentation in enumerate(segmentations)
        ],
        "categories": [
            {"id": 20, "name": "cup", "synonyms": ["mug"], "frequency": "c"},
            {"id": 4, "name": "cat", "synonyms": [], "frequency": "r"},
        ],
    }


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container and key or position of a document."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


def mutated(case: int) -> dict[str, Any]:
    """Replace, drop or repeat one or two things of a good file."""
    rng = random.Random(SEED * N_CASES + case)
    changed = document()
    for _ in range(rng.choice((1, 1, 1, 2))):
        container, key = rng.choice(places(changed))
        kind = rng.random()
        value = container[key]
        if kind < 0.1:
            del container[key]
        elif kind < 0.2 and isinstance(container, list):
            container.insert(key, copy.deepcopy(value))
        elif kind < 0.3 and isinstance(value, str):
            container[key] = value[: rng.randrange(len(value) + 1)]
        elif kind < 0.5 and isinstance(value, int | float):
            container[key] = value * rng.choice((-1, 2, 10, 1000, 10**12))
        else:
            container[key] = copy.deepcopy(rng.choice(BAD))
    return changed


def use(folder: Path) -> None:
    """Do with a file what check, training and evaluation do: twice, with the same outcome."""
    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.annotations.check import check_data
    from bsgal_train.data import CropWindow, compute_repeat_factors
    from bsgal_train.data.masks import crop_masks
    from bsgal_train.errors import AnnotationError
    from bsgal_train.evaluation import evaluate_lvis

    path = folder / "lvis.json"
    is_usable = check_data(path, folder).is_usable
    try:
        annotations = LvisAnnotations.load(path, folder)
    except AnnotationError as error:
        if is_usable:
            raise ValueError("the check passes what loading refuses") from error
        return
    compute_repeat_factors(annotations)
    predictions = []
    for record in annotations.images:
        image_hw = record.height, record.width
        window = CropWindow(image_hw, 0, 0, image_hw, flip=False)
        masks, positions = crop_masks(record, window)
        assert masks.shape[1:] == image_hw
        assert (masks == crop_masks(record, window)[0]).all(), "pixels that nobody wrote"
        assert len(masks) == len(positions)
        predictions += [
            {
                "image_id": record.image_id,
                "category_id": annotations.categories[record.instances[i].class_index].category_id,
                "bbox": record.instances[i].bbox_xywh,
                "score": 1.0,
            }
            for i in positions
        ]
    result = evaluate_lvis(path, predictions, ["bbox"])
    assert result.metrics["bbox"].ap is None or 0 <= result.metrics["bbox"].ap <= 1
    evaluate_lvis(path, [], ["segm"])


def run_all(folder: Path) -> None:
    import resource

    from PIL import Image

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for number in range(3):
        Image.new("RGB", (10, 8)).save(folder / f"{number}.png")
    for case in range(N_CASES):
        # Said before: a crash says nothing afterwards.
        sys.stdout.write(f"{case}\n")
        sys.stdout.flush()
        (folder / "lvis.json").write_text(json.dumps(mutated(case)))
        use(folder)


@pytest.mark.skipif(os.name != "posix", reason="needs limits on memory")
def test_no_mutated_file_does_harm(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    cases = done.stdout.split()
    last = mutated(int(cases[-1])) if cases else None
    assert done.returncode == 0, f"case {cases[-1:]}: {last}\n{done.stderr[-3000:]}"
    assert len(cases) == N_CASES


def test_mutations_are_of_all_kinds() -> None:
    """Most files are changed, and what is changed is spread over the whole document."""
    files = [json.dumps(mutated(case)) for case in range(N_CASES)]

    assert len(set(files)) > 0.8 * N_CASES
    assert sum(file != json.dumps(document()) for file in files) > 0.95 * N_CASES


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
