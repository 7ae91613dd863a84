"""Two training samples with pasted objects, and a detector to judge them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bsgal_paste import CategoryBalancedSampler, CopyPaste, InstancePool, UniformScale
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import ClassMatchedReference, RandomCrop, TrainingMapper, TrainingSample
from bsgal_train.detector import build_detector
from bsgal_train.recipe import Recipe

CROP = RandomCrop(crop_px=64)


@pytest.fixture(name="annotations")
def training_annotations(tiny_data: Path) -> LvisAnnotations:
    return LvisAnnotations.load(tiny_data / "train.json", tiny_data)


@pytest.fixture
def reference(annotations: LvisAnnotations) -> ClassMatchedReference:
    return ClassMatchedReference(annotations, CROP)


@pytest.fixture
def samples(tiny_data: Path, annotations: LvisAnnotations) -> list[TrainingSample]:
    pool = InstancePool.open(tiny_data / "pool").match(annotations.categories)
    sampler = CategoryBalancedSampler(pool, count_range=(1, 3))
    copy_paste = CopyPaste(pool, sampler, UniformScale(scale_range=(0.3, 0.4)))
    mapper = TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)
    return [mapper(position, image_index=position) for position in range(2)]


@pytest.fixture
def detector(tiny_recipe: Recipe) -> Any:
    torch.manual_seed(0)
    return build_detector(tiny_recipe.detector, n_classes=3)
