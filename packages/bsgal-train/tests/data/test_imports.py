from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path

import numpy as np

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import (
    RandomCrop,
    RepeatFactorSampler,
    TrainingMapper,
    build_test_loader,
    build_train_loader,
)

class Telling(TrainingMapper):
    # A loader process tells what it has loaded by the time a sample is made.
    def __call__(self, position, image_index):
        sample = super().__call__(position, image_index)
        assert "detectron2" not in sys.modules, "a loader process has loaded detectron2"
        return sample

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    annotations = LvisAnnotations.load(folder / "lvis.json", folder)
    mapper = Telling(annotations, RandomCrop(crop_px=32), seed=0)
    sampler = RepeatFactorSampler(np.ones(len(annotations.images)), 0)
    batch = next(iter(build_train_loader(annotations, mapper, sampler, 2, 2)))
    assert len(batch) == 2 and len(batch[0].original) > 0
    next(iter(build_test_loader(annotations)))
    if sys.argv[2] == "detector":
        import bsgal_train.detector
    print("detectron2" in sys.modules)
"""


def loads_detectron2(tmp_path: Path, write_dataset, extra: str) -> bool:
    write_dataset(tmp_path, [[(42, 4, 4, 40, 40)]] * 2)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, tmp_path, extra], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split() == ["True"]


def test_samples_are_made_without_detectron2(tmp_path: Path, write_dataset) -> None:
    assert not loads_detectron2(tmp_path, write_dataset, "nothing")


def test_the_check_can_fail(tmp_path: Path, write_dataset) -> None:
    assert loads_detectron2(tmp_path, write_dataset, "detector")
