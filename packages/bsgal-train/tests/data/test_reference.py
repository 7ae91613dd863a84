from __future__ import annotations

import logging

import numpy as np
import pytest

from bsgal_paste import CategoryBalancedSampler, CopyPaste, UniformScale
from bsgal_train.data import (
    REAL,
    ClassMatchedReference,
    PastedInstance,
    RandomCrop,
    TrainingMapper,
    TrainingSample,
)
from bsgal_train.errors import TooManyCorruptImagesError

CROP = RandomCrop(crop_px=64, scale_range=(1.0, 1.0))


@pytest.fixture(scope="module")
def samples(annotations) -> list[TrainingSample]:
    mapper = TrainingMapper(annotations, CROP, seed=0)
    return [mapper(position, position) for position in range(6)]


def with_pastes(sample: TrainingSample, *class_indices: int) -> TrainingSample:
    pastes = tuple(PastedInstance(str(i), 0, i, "r", 1.0) for i in class_indices)
    return TrainingSample(sample.position, sample.pasted, sample.original, pastes)


def drawn_ids(annotations, sample: TrainingSample, n: int = 200) -> list[int]:
    reference = ClassMatchedReference(annotations, CROP)
    drawn = reference.batch([sample] * n, np.random.default_rng(0))
    return [one.image_id for one in drawn]


def test_one_real_image_comes_for_each_sample(annotations, samples):
    drawn = ClassMatchedReference(annotations, CROP).batch(samples, np.random.default_rng(0))
    assert len(drawn) == len(samples)
    for one in drawn:
        assert (one.source == REAL).all()


def test_the_image_holds_a_pasted_category(annotations, samples):
    # Class 1 is in the third image only.
    assert set(drawn_ids(annotations, with_pastes(samples[0], 1))) == {3}
    assert set(drawn_ids(annotations, with_pastes(samples[5], 2))) == {1, 2, 3, 4, 5}


def test_categories_count_once_however_often_they_were_pasted(annotations, samples):
    ids = drawn_ids(annotations, with_pastes(samples[0], 2, 2, 2, 2, 2, 1), n=1000)
    # Image 3 holds class 1, drawn half of the time, and is one of five with class 2.
    assert ids.count(3) / len(ids) == pytest.approx(0.5 + 0.5 / 5, abs=0.05)


def test_without_pastes_the_samples_own_categories_count(annotations, samples):
    assert set(drawn_ids(annotations, samples[0])) == {1, 2, 3, 4, 5}


def test_a_pasted_category_without_real_images_falls_back(annotations, samples):
    assert set(drawn_ids(annotations, with_pastes(samples[0], 0))) == {1, 2, 3, 4, 5}


def test_an_empty_image_without_pastes_draws_from_all_categories(annotations, samples):
    ids = drawn_ids(annotations, samples[5], n=1000)
    assert ids.count(3) / len(ids) == pytest.approx(0.6, abs=0.05)


def test_the_draw_depends_only_on_the_generator(annotations, samples):
    reference = ClassMatchedReference(annotations, RandomCrop(crop_px=50))
    one, other, third = (
        [d.image for d in reference.batch(samples, np.random.default_rng(s))] for s in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(one, third, strict=True))


def test_the_crop_is_the_training_crop(annotations, copy_paste, pool):
    crop = RandomCrop(crop_px=24, scale_range=(2.0, 2.0))
    paste = CopyPaste(pool, CategoryBalancedSampler(pool, count_range=(1, 2)), UniformScale())
    mapper = TrainingMapper(annotations, crop, seed=0, copy_paste=paste)
    reference = ClassMatchedReference(annotations, crop)
    drawn = reference.batch([mapper(0, 0)], np.random.default_rng(0))
    assert drawn[0].image.shape == (3, 24, 24)


def test_a_corrupt_image_is_drawn_again_and_counted(tmp_path, write_dataset, caplog):
    broken = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 2)
    sample = TrainingMapper(broken, CROP, seed=0)(0, 0)
    (tmp_path / "1.png").write_bytes(b"broken")
    reference = ClassMatchedReference(broken, CROP)
    with caplog.at_level(logging.WARNING):
        drawn = reference.batch([sample] * 20, np.random.default_rng(0))
    assert {one.image_id for one in drawn} == {2}
    assert sum(reference.skipped.share().values()) > 1
    assert caplog.text.count("1.png cannot be read") == 1
    (tmp_path / "2.png").unlink()
    with pytest.raises(TooManyCorruptImagesError, match="11 reference images in a row"):
        reference.batch([sample], np.random.default_rng(0))
