from __future__ import annotations

import itertools
import json
import logging
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import (
    RandomCrop,
    RepeatFactorSampler,
    TrainingMapper,
    TrainingSample,
    build_test_loader,
    build_train_loader,
    compute_repeat_factors,
)

CROP = RandomCrop(crop_px=48)
SMAPS = Path("/proc/self/smaps_rollup")


@pytest.fixture(scope="module")
def sampler(annotations) -> RepeatFactorSampler:
    return RepeatFactorSampler(compute_repeat_factors(annotations, 0.9), seed=5)


@pytest.fixture(scope="module")
def mapper(annotations, copy_paste) -> TrainingMapper:
    return TrainingMapper(annotations, CROP, seed=5, copy_paste=copy_paste)


def take(n: int, *arguments) -> list[list[TrainingSample]]:
    return list(itertools.islice(build_train_loader(*arguments), n))


def fingerprint(sample: TrainingSample) -> tuple:
    return (
        sample.position,
        sample.original.image_id,
        sample.pasted.image.numpy().tobytes(),
        sample.pasted.masks.numpy().tobytes(),
        sample.original.boxes_xyxy.numpy().tobytes(),
        sample.pastes,
    )


def test_positions_follow_one_another_without_end(annotations, mapper, sampler):
    batches = take(5, annotations, mapper, sampler, 4, 0)
    assert [s.position for batch in batches for s in batch] == list(range(20))
    images = [annotations.images[sampler.image_index(p)].image_id for p in range(20)]
    assert [s.original.image_id for batch in batches for s in batch] == images


def test_a_resumed_loader_goes_on_where_it_stopped(annotations, mapper, sampler):
    straight = take(4, annotations, mapper, sampler, 3, 0)
    resumed = take(2, annotations, mapper, sampler, 3, 0, 6)
    assert [list(map(fingerprint, b)) for b in straight[2:]] == [
        list(map(fingerprint, b)) for b in resumed
    ]


def test_the_number_of_worker_processes_changes_nothing(annotations, mapper, sampler):
    alone, shared = (take(4, annotations, mapper, sampler, 2, n) for n in (0, 2))
    assert [list(map(fingerprint, b)) for b in alone] == [list(map(fingerprint, b)) for b in shared]


def test_processes_share_each_batch_and_nothing_else_changes(annotations, mapper, sampler):
    whole = take(3, annotations, mapper, sampler, 4, 0, 8)
    shares = [
        take(3, annotations, mapper, sampler, 4, 0, 8, own) for own in (range(2), range(2, 4))
    ]
    joined = [first + second for first, second in zip(*shares, strict=True)]
    assert [list(map(fingerprint, b)) for b in joined] == [list(map(fingerprint, b)) for b in whole]


def test_processes_share_the_test_images(annotations):
    def images(process):
        loader = build_test_loader(annotations, process=process, n_processes=2)
        return len(loader), [one["image_id"] for one in loader]

    assert images(0) == (3, [1, 3, 5])
    assert images(1) == (3, [2, 4, 6])


def test_skipped_images_are_counted_and_logged_once(tmp_path, write_dataset, caplog):
    broken = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 4)
    (tmp_path / "1.png").write_bytes(b"broken")
    sampler = RepeatFactorSampler(np.ones(4), 0)
    loader = build_train_loader(broken, TrainingMapper(broken, CROP, seed=0), sampler, 4, 1)
    with caplog.at_level(logging.WARNING):
        batches = list(itertools.islice(loader, 5))
    assert {s.original.image_id for batch in batches for s in batch} == {2, 3, 4}
    ((message, count),) = loader.skipped.share().items()
    assert "1.png cannot be read" in message
    assert count >= 5
    assert caplog.text.count("1.png cannot be read") == 1


def test_a_sampler_of_other_annotations_is_refused(annotations, mapper):
    with pytest.raises(ValueError, match=r"has 3 repeat factors, but .* has 6 images"):
        build_train_loader(annotations, mapper, RepeatFactorSampler(np.ones(3), 0), 2, 0)


def test_worker_processes_leave_the_interrupt_to_the_training_process(annotations, mapper, sampler):
    batches = iter(build_train_loader(annotations, mapper, sampler, 2, 1))
    next(batches)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("needs /proc to find the worker process")
    workers = [int(pid) for pid in children.read_text().split()]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    # More than were loaded ahead.
    assert [next(batches)[0].position for _ in range(8)] == list(range(2, 18, 2))


@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc to measure a process's memory")
def test_the_private_memory_of_a_worker_stays_flat(tmp_path, write_dataset):
    """Records of annotations that a worker reads stay in memory that all processes share."""
    small = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]])
    document = json.loads(small.path.read_text())
    (image,), (annotation,) = document["images"], document["annotations"]
    # As many points as hand-drawn outlines have.
    outline = [x for k in range(50) for x in (4 + k * 0.4, 4 + (k % 7))]
    numbers = range(1, 15_001)
    document["images"] = [{**image, "id": n} for n in numbers]
    document["annotations"] = [
        {**annotation, "id": n, "image_id": n, "segmentation": [outline]} for n in numbers
    ]
    small.path.write_text(json.dumps(document))
    large = LvisAnnotations.load(small.path, tmp_path)

    sampler = RepeatFactorSampler(np.ones(len(large.images)), 0)
    loader = build_train_loader(large, TrainingMapper(large, CROP, seed=0), sampler, 8, 1)
    batches = iter(loader)
    for _ in range(15):
        next(batches)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    before = {pid: private_mb(pid) for pid in children}
    assert before
    for _ in range(150):
        next(batches)
    grown = {pid: private_mb(pid) - mb for pid, mb in before.items()}
    assert max(grown.values()) < 3, grown


def private_mb(pid: str) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"Private_Dirty: +(\d+) kB", text)) / 1e3


def test_test_images_come_once_in_order_at_their_own_size(annotations):
    loader = build_test_loader(annotations)
    assert len(loader) == 6
    inputs = list(loader)
    assert [one["image_id"] for one in inputs] == [1, 2, 3, 4, 5, 6]
    for one, record in zip(inputs, annotations.images, strict=True):
        assert (one["height"], one["width"]) == (48, 64)
        expected = np.asarray(Image.open(record.path))
        np.testing.assert_array_equal(one["image"].permute(1, 2, 0).numpy(), expected)
        assert one["image"].dtype == torch.uint8


@pytest.mark.parametrize(("image_px", "shape"), [(32, (3, 24, 32)), (128, (3, 96, 128))])
def test_test_images_are_resized_by_their_longer_side(annotations, image_px, shape):
    first, *_ = build_test_loader(annotations, image_px=image_px)
    assert first["image"].shape == shape
    assert (first["height"], first["width"]) == (48, 64)


def test_test_images_are_the_same_from_worker_processes(annotations):
    alone, shared = (
        [one["image"] for one in build_test_loader(annotations, n_workers=n)] for n in (0, 2)
    )
    assert all((a == b).all() for a, b in zip(alone, shared, strict=True))


def test_a_corrupt_test_image_is_left_out_and_named(tmp_path, write_dataset):
    broken = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 3)
    (tmp_path / "2.png").write_bytes(b"broken")
    loader = build_test_loader(broken)
    assert [one["image_id"] for one in loader] == [1, 3]
    (message,) = loader.skipped.share()
    assert "2.png cannot be read" in message
