from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import (
    RandomCrop,
    RepeatFactorSampler,
    TrainingMapper,
    build_test_loader,
    build_train_loader,
    compute_repeat_factors,
)

ROOT = Path(__file__).parents[5] / "shared" / "data" / "coco-mini"

pytestmark = pytest.mark.skipif(not ROOT.exists(), reason=f"needs the photographs in {ROOT}")


@pytest.fixture(scope="module")
def photographs() -> LvisAnnotations:
    return LvisAnnotations.load(ROOT / "lvis_train.json", ROOT / "images" / "train")


def test_masks_at_full_size_are_those_of_pycocotools(photographs):
    crop = RandomCrop(crop_px=640, scale_range=(1.0, 1.0), flip_prob=0.0)
    mapper = TrainingMapper(photographs, crop, seed=0)
    n_compared = 0
    for index, record in enumerate(itertools.islice(photographs.images, 20)):
        if max(record.height, record.width) != 640:
            continue
        drawn = mapper(0, index).original.masks.numpy()
        expected = [
            coco_mask.decode(
                coco_mask.merge(coco_mask.frPyObjects(i.segmentation, record.height, record.width))
            )
            for i in record.instances
        ]
        expected = [mask > 0 for mask in expected if mask.any()]
        np.testing.assert_array_equal(drawn, expected)
        n_compared += 1
    assert n_compared > 10


def test_a_pass_over_the_photographs_skips_none(photographs):
    crop = RandomCrop(crop_px=160, scale_range=(0.5, 2.0))
    mapper = TrainingMapper(photographs, crop, seed=0)
    factors = compute_repeat_factors(photographs, 0.05)
    assert factors.max() == pytest.approx((0.05 / 0.01) ** 0.5)
    sampler = RepeatFactorSampler(factors, seed=0)
    loader = build_train_loader(photographs, mapper, sampler, 10, 0)
    n_instances = 0
    for samples in itertools.islice(loader, 14):
        for sample in samples:
            assert max(sample.original.image.shape[1:]) <= 160
            n_instances += len(sample.original)
    assert not loader.skipped.share()
    assert n_instances > 300


def test_validation_photographs_load(photographs):
    validation = LvisAnnotations.load(ROOT / "lvis_val.json", ROOT / "images" / "val")
    assert validation.class_index_of == photographs.class_index_of
    loader = build_test_loader(validation, image_px=160)
    inputs = list(loader)
    assert len(inputs) == 30
    assert all(max(one["image"].shape[1:]) == 160 for one in inputs)
    assert all(one["image"].dtype == torch.uint8 for one in inputs)
