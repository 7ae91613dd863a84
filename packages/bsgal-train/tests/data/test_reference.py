from __future__ import annotations

import functools
import itertools
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest

from bsgal_paste import CategoryBalancedSampler, CopyPaste, UniformScale
from bsgal_train.data import (
    NOT_ANNOTATED,
    REAL,
    ClassMatchedReference,
    DrawnAhead,
    LabelledImage,
    PastedInstance,
    RandomCrop,
    RepeatFactorSampler,
    TrainingMapper,
    TrainingSample,
    build_train_loader,
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


def at_positions(sample: TrainingSample, n: int) -> list[TrainingSample]:
    return [replace(sample, position=position) for position in range(n)]


def drawn_ids(annotations, sample: TrainingSample, n: int = 200) -> list[int]:
    reference = ClassMatchedReference(annotations, CROP)
    return [one.image_id for one in reference.for_step(at_positions(sample, n), 0)]


def pixels(image: LabelledImage) -> bytes:
    return image.image.numpy().tobytes()


def test_one_real_image_comes_for_each_sample(annotations, samples):
    drawn = ClassMatchedReference(annotations, CROP).for_step(samples, 0)
    assert len(drawn) == len(samples)
    for one in drawn:
        assert (one.source == REAL).all()
        assert (one.annotation_ids != NOT_ANNOTATED).all()


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


def test_the_draw_depends_only_on_seed_and_position(annotations, samples):
    reference = ClassMatchedReference(annotations, RandomCrop(crop_px=50))
    one, third = (list(map(pixels, reference.for_step(samples, seed))) for seed in (1, 2))
    backwards = list(map(pixels, reference.for_step(samples[::-1], 1)))
    assert one == backwards[::-1]
    assert one != third


def test_the_crop_is_the_training_crop(annotations, copy_paste, pool):
    crop = RandomCrop(crop_px=24, scale_range=(2.0, 2.0))
    paste = CopyPaste(pool, CategoryBalancedSampler(pool, count_range=(1, 2)), UniformScale())
    mapper = TrainingMapper(annotations, crop, seed=0, copy_paste=paste)
    reference = ClassMatchedReference(annotations, crop)
    drawn = reference.for_step([mapper(0, 0)], 0)
    assert drawn[0].image.shape == (3, 24, 24)


def test_a_corrupt_image_is_drawn_again_and_counted(tmp_path, write_dataset, caplog):
    broken = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 2)
    sample = TrainingMapper(broken, CROP, seed=0)(0, 0)
    (tmp_path / "1.png").write_bytes(b"broken")
    reference = ClassMatchedReference(broken, CROP)
    with caplog.at_level(logging.WARNING):
        drawn = reference.for_step(at_positions(sample, 20), 0)
    assert {one.image_id for one in drawn} == {2}
    assert sum(reference.skipped.share().values()) > 1
    assert caplog.text.count("1.png cannot be read") == 1
    (tmp_path / "2.png").unlink()
    with pytest.raises(TooManyCorruptImagesError, match="11 reference images in a row"):
        reference.for_step([sample], 0)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_loader_processes_draw_what_a_step_would(annotations, copy_paste, n_workers):
    reference = ClassMatchedReference(annotations, CROP)
    mapper = TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)
    # A step's seed is ten times its number; the first and the third step ask.
    ahead = DrawnAhead(
        draws=reference.draws,
        seed_of_step=functools.partial(int.__mul__, 10),
        batch_size=4,
        every=2,
    )
    sampler = RepeatFactorSampler(np.ones(6), 0)
    # The second of two processes, from the second step on.
    loader = build_train_loader(
        annotations, mapper, sampler, 4, n_workers, 4, range(2, 4), reference=ahead
    )
    for step, batch in zip((2, 3, 4), itertools.islice(loader, 3), strict=True):
        assert [sample.position for sample in batch] == [4 * step - 2, 4 * step - 1]
        if step != 3:
            assert all(sample.reference is None for sample in batch)
            continue
        bare = [replace(sample, reference=None) for sample in batch]
        wanted = list(map(pixels, reference.for_step(bare, 30)))
        assert [pixels(sample.reference.image) for sample in batch] == wanted
        assert reference.for_step(batch, 30)[0] is batch[0].reference.image
        # Drawn for another step, it is of no use.
        assert list(map(pixels, reference.for_step(batch, 31))) == list(
            map(pixels, reference.for_step(bare, 31))
        )


def test_what_is_drawn_ahead_can_be_sent_to_another_process(annotations, samples):
    ahead = DrawnAhead(
        draws=ClassMatchedReference(annotations, CROP).draws,
        seed_of_step=abs,
        batch_size=1,
        every=1,
    )
    again = pickle.loads(pickle.dumps(ahead))
    one, other = ahead(samples[0]).reference, again(samples[0]).reference
    assert pixels(one.image) == pixels(other.image)


def test_a_corrupt_image_is_counted_where_it_is_drawn_ahead(tmp_path, write_dataset):
    broken = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 2)
    (tmp_path / "1.png").write_bytes(b"broken")
    draws = ClassMatchedReference(broken, CROP).draws
    ahead = DrawnAhead(draws=draws, seed_of_step=abs, batch_size=1, every=1)
    mapper = TrainingMapper(broken, CROP, seed=0)

    def counts(reference: DrawnAhead | None) -> dict[str, int]:
        sampler = RepeatFactorSampler(np.ones(2), 0)
        loader = build_train_loader(broken, mapper, sampler, 1, 1, reference=reference)
        batches = list(itertools.islice(loader, 20))
        if reference is not None:
            assert {batch[0].reference.image.image_id for batch in batches} == {2}
        return loader.skipped.share()

    (without,), (both,) = counts(None).values(), counts(ahead).values()
    assert both > without


@pytest.mark.parametrize("n_workers", [0, 2])
def test_images_of_classes_come_in_batches_from_any_number_of_processes(
    annotations, n_workers, tmp_path, write_dataset
):
    reference = ClassMatchedReference(annotations, CROP, n_workers=n_workers)
    alone = ClassMatchedReference(annotations, CROP)
    batches = list(reference.of_classes([1, 2, 2, 1, 2], 7, [4, 3, 2, 1, 0], 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    found = [one for batch in batches for one in batch]
    wanted = [
        alone.draws.of_class(index, 7, key).image
        for index, key in zip([1, 2, 2, 1, 2], [4, 3, 2, 1, 0], strict=True)
    ]
    assert list(map(pixels, found)) == list(map(pixels, wanted))
    assert found[0].image_id == found[3].image_id == 3
    assert list(reference.of_classes([], 7, [], 2)) == []

    broken = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 2)
    (tmp_path / "1.png").write_bytes(b"broken")
    reference = ClassMatchedReference(broken, CROP, n_workers=n_workers)
    images = [one for batch in reference.of_classes([2] * 20, 0, range(20), 3) for one in batch]
    assert {one.image_id for one in images} == {2}
    (count,) = reference.skipped.share().values()
    assert count > 1
    (tmp_path / "2.png").unlink()
    with pytest.raises(TooManyCorruptImagesError, match="11 reference images in a row"):
        list(reference.of_classes([2], 0, [0], 1))
