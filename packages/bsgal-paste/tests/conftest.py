from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from bsgal_paste import AnnotatedImage, InstancePool

settings.register_profile("bsgal", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bsgal")

COCO_MINI = Path(__file__).resolve().parents[4] / "shared" / "data" / "coco-mini"


def pytest_configure(config: pytest.Config) -> None:
    # pycocotools 2.0.11 and older, compiled part, under NumPy 2.
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    )


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    if not COCO_MINI.is_dir():
        pytest.skip("the photographs of coco-mini are not at ../shared/data/coco-mini")
    return COCO_MINI


def draw_disc(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot((rows + 0.5) / height - 0.5, (columns + 0.5) / width - 0.5)
    rgba = np.zeros((height, width, 4), dtype=np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = np.clip((0.5 - distance) * 20, 0, 1) * 255
    return rgba


@pytest.fixture
def disc():
    return draw_disc


@pytest.fixture
def pool() -> InstancePool:
    discs = [
        draw_disc(40, 60, (250, 10, 10)),
        draw_disc(30, 30, (10, 250, 10)),
        draw_disc(64, 20, (10, 10, 250)),
    ]
    return InstancePool.from_arrays(discs, [1, 2, 2], category_names={1: "apple", 2: "ball"})


@pytest.fixture
def target() -> AnnotatedImage:
    masks = np.zeros((2, 96, 128), dtype=bool)
    masks[0, 10:50, 20:60] = True
    masks[1, 60:90, 70:120] = True
    image = np.full((96, 128, 3), 90, dtype=np.uint8)
    return AnnotatedImage(image, masks, [7, 1])


@pytest.fixture
def write_pool(tmp_path: Path):
    """Write a pool folder; rows override the fields of a good kept row."""

    def write(rows: list[dict], name: str = "pool", schema: str = "bsgal.instance_pool/1") -> Path:
        root = tmp_path / name
        root.mkdir()
        (root / "meta.json").write_text(json.dumps({"schema": schema, "source": {"from": "test"}}))
        lines = []
        for i, row in enumerate(rows):
            category_id = row.get("category_id", 1)
            instance_id = row.get("instance_id", f"i{i:03d}")
            file = f"instances/{category_id}/{instance_id}.png"
            full = {
                "instance_id": instance_id,
                "category_id": category_id,
                "category_name": f"thing_{category_id}",
                "file": file,
                "label_mask_threshold": 128,
                "status": "kept",
                **row,
            }
            if full["status"] == "kept" and full["file"] == file:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw_disc(20, 24, (i % 256, 100, 100))).save(root / file)
            lines.append(json.dumps(full) + "\n")
        (root / "manifest.jsonl").write_text("".join(lines))
        return root

    return write
