from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bsgal_paste import (
    CategoryBalancedSampler,
    CopyPaste,
    InstancePool,
    UniformScale,
    open_folder_pool,
)
from bsgal_train.data import (
    NOT_ANNOTATED,
    REAL,
    LabelledImage,
    RandomCrop,
    TrainingMapper,
    TrainingSample,
)
from bsgal_train.errors import TooManyCorruptImagesError

CROP = RandomCrop(crop_px=56, scale_range=(0.7, 1.6))
WHOLE = RandomCrop(crop_px=64, scale_range=(1.0, 1.0), flip_prob=0.0)


def assert_same_image(one: LabelledImage, other: LabelledImage) -> None:
    for field in fields(LabelledImage):
        value, expected = getattr(one, field.name), getattr(other, field.name)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
        else:
            assert value == expected


def tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    boxes = []
    for mask in masks.numpy():
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def test_without_pastes_both_sides_are_the_annotated_image(annotations):
    sample = TrainingMapper(annotations, WHOLE, seed=0)(0, 2)
    assert sample.pasted is sample.original
    assert sample.pastes == sample.skipped == ()
    record = annotations.images[2]
    image = np.asarray(Image.open(record.path))
    np.testing.assert_array_equal(sample.original.image.permute(1, 2, 0).numpy(), image)
    assert sample.original.image_id == record.image_id
    assert sample.original.file_name == str(record.path)
    original = sample.original
    assert original.image_hw == (48, 64)
    assert original.class_indices.tolist() == [2, 2, 1]
    assert original.source.tolist() == [-1, -1, -1]
    expected = [(x, y, x + w, y + h) for x, y, w, h in (i.bbox_xywh for i in record.instances)]
    assert original.boxes_xyxy.tolist() == [list(box) for box in expected]
    x, y, w, h = map(int, record.instances[0].bbox_xywh)
    assert original.masks[0].sum() == w * h
    assert original.masks[0, y : y + h, x : x + w].all()


def test_every_field_is_in_step_after_crop_and_paste(annotations, copy_paste):
    mapper = TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)
    n_pastes = 0
    for position in range(60):
        sample = mapper(position, position % 6)
        for side in (sample.original, sample.pasted):
            masks = side.masks
            assert side.image.dtype == torch.uint8
            assert tuple(side.image.shape[1:]) == side.image_hw == masks.shape[1:]
            assert max(side.image_hw) <= 56
            assert masks.flatten(1).any(dim=1).all()
            torch.testing.assert_close(side.boxes_xyxy, tight_boxes(masks))
            assert len(side) == len(masks) == len(side.source) == len(side.annotation_ids)
        assert (sample.original.source == REAL).all()
        sources = sample.pasted.source
        assert sorted(sources[sources >= 0].tolist()) == list(range(len(sample.pastes)))
        n_pastes += len(sample.pastes)
    assert n_pastes > 60


def test_objects_keep_the_id_of_their_annotation_when_a_crop_drops_some(annotations):
    # Magnified, so that a window misses some of the third image's three objects.
    mapper = TrainingMapper(annotations, RandomCrop(crop_px=24, scale_range=(3.0, 3.0)), seed=0)
    class_of = {one.annotation_id: one.class_index for one in annotations.images[2].instances}
    seen = []
    for position in range(60):
        original = mapper(position, 2).original
        assert original.annotation_ids.dtype == torch.int64
        ids = original.annotation_ids.tolist()
        assert ids == sorted(set(ids) & set(class_of))
        assert original.class_indices.tolist() == [class_of[one] for one in ids]
        seen.append(tuple(ids))
    first, second, third = class_of
    # The first object alone, and one that comes after a dropped one.
    assert {(first,), (second,)} <= set(seen)
    assert any(third in ids and first not in ids for ids in seen)


def test_objects_keep_the_id_of_their_annotation_when_a_paste_hides_one(tmp_path, write_dataset):
    # Pasted into the small object's corner, whose pixels all go.
    annotations = write_dataset(tmp_path, [[(3, 0, 0, 6, 6), (42, 40, 24, 20, 20)]])
    hidden, visible = (one.annotation_id for one in annotations.images[0].instances)
    pool = InstancePool.from_arrays([np.full((40, 40, 4), 255, dtype=np.uint8)], [11])
    sampler = CategoryBalancedSampler(pool, count_range=(1, 2))
    paste = CopyPaste(pool, sampler, UniformScale(scale_range=(0.5, 0.5)))
    mapper = TrainingMapper(annotations, WHOLE, seed=0, copy_paste=paste)
    found = set()
    for position in range(200):
        sample = mapper(position, 0)
        assert sample.original.annotation_ids.tolist() == [hidden, visible]
        pasted = sample.pasted
        is_pasted = pasted.source != REAL
        assert (pasted.annotation_ids[is_pasted] == NOT_ANNOTATED).all()
        assert (pasted.annotation_ids[~is_pasted] != NOT_ANNOTATED).all()
        by_id = dict(zip(pasted.annotation_ids.tolist(), pasted.class_indices, strict=True))
        assert by_id.get(visible, 2) == 2
        assert by_id.get(hidden, 0) == 0
        found.add(tuple(pasted.annotation_ids.tolist()))
    assert {(hidden, visible, NOT_ANNOTATED), (visible, NOT_ANNOTATED)} <= found


def test_pastes_name_pool_instance_category_and_visible_share(annotations, copy_paste):
    mapper = TrainingMapper(annotations, CROP, seed=1, copy_paste=copy_paste)
    category_of = {"a": (3, 0, "r"), "b": (42, 2, "f"), "c": (42, 2, "f")}
    seen = set()
    for position in range(20):
        sample = mapper(position, 0)
        for k, paste in enumerate(sample.pastes):
            seen.add(paste.instance_id)
            found = (paste.category_id, paste.class_index, paste.frequency)
            assert found == category_of[paste.instance_id]
            assert 0 < paste.visible_frac <= 1
            of_source = sample.pasted.class_indices[sample.pasted.source == k]
            assert of_source.tolist() == [paste.class_index]
    assert seen == {"a", "b", "c"}


def test_pasting_changes_pixels_only_under_pasted_masks(annotations, copy_paste):
    mapper = TrainingMapper(annotations, CROP, seed=2, copy_paste=copy_paste)
    for position in range(20):
        sample = mapper(position, 1)
        pasted = sample.pasted.masks[sample.pasted.source >= 0].any(dim=0)
        differs = (sample.pasted.image != sample.original.image).any(dim=0)
        assert not (differs & ~pasted).any()
        assert differs.any() == bool(sample.pastes)


def test_original_side_is_what_a_mapper_without_pastes_gives(annotations, copy_paste):
    pasting = TrainingMapper(annotations, CROP, seed=3, copy_paste=copy_paste)
    plain = TrainingMapper(annotations, CROP, seed=3)
    for position in range(6):
        assert_same_image(pasting(position, position).original, plain(position, position).original)


def test_a_sample_is_a_function_of_seed_and_position(annotations, copy_paste):
    def samples(seed: int, positions: range) -> dict[int, TrainingSample]:
        mapper = TrainingMapper(annotations, CROP, seed=seed, copy_paste=copy_paste)
        return {position: mapper(position, position % 6) for position in positions}

    forwards, backwards = samples(7, range(8)), samples(7, range(7, -1, -1))
    for position in range(8):
        assert_same_image(forwards[position].pasted, backwards[position].pasted)
        assert forwards[position].pastes == backwards[position].pastes
    other = samples(8, range(8))
    assert any(forwards[p].pastes != other[p].pastes for p in range(8))


def test_the_same_image_is_cropped_differently_at_another_position(annotations):
    mapper = TrainingMapper(annotations, CROP, seed=0)
    assert len({tuple(mapper(p, 0).original.image.shape) for p in range(10)}) > 1


def test_the_mapper_survives_pickling(annotations, copy_paste):
    mapper = TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)
    again = pickle.loads(pickle.dumps(mapper))
    assert_same_image(mapper(5, 1).pasted, again(5, 1).pasted)


def test_an_image_without_objects_is_still_pasted_into(annotations, copy_paste):
    mapper = TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)
    sample = mapper(0, 5)
    assert len(sample.original) == len(sample.original.masks) == 0
    assert len(sample.pasted) == len(sample.pastes) > 0


@pytest.fixture
def half_broken(tmp_path: Path, write_dataset):
    """Give four images, the first two of them unreadable."""
    annotations = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 4)
    (tmp_path / "1.png").write_bytes(b"broken")
    (tmp_path / "2.png").unlink()
    return annotations


def test_a_corrupt_image_is_replaced_and_named(half_broken):
    samples = [TrainingMapper(half_broken, CROP, seed=4)(p, 0) for p in range(30)]
    assert {sample.original.image_id for sample in samples} == {3, 4}
    assert all("1.png cannot be read" in sample.skipped[0] for sample in samples)
    assert any("2.png" in message for sample in samples for message in sample.skipped)
    again = TrainingMapper(half_broken, CROP, seed=4)(7, 0)
    assert_same_image(again.original, samples[7].original)
    assert again.skipped == samples[7].skipped


def test_nothing_but_corrupt_images_ends_the_run(tmp_path, write_dataset):
    annotations = write_dataset(tmp_path, [[(42, 4, 4, 20, 20)]] * 3)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(TooManyCorruptImagesError, match="11 images in a row cannot be read"):
        TrainingMapper(annotations, CROP, seed=0)(0, 0)


def test_an_unreadable_pool_instance_is_named(annotations, tmp_path):
    name = annotations.categories[0].name
    (tmp_path / name).mkdir()
    (tmp_path / name / "gone.png").write_bytes(b"no picture")
    pool = open_folder_pool(tmp_path).match(annotations.categories)
    sampler = CategoryBalancedSampler(pool, count_range=(2, 3))
    copy_paste = CopyPaste(pool, sampler, UniformScale(), on_corrupt="skip")
    sample = TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)(0, 0)
    assert sample.skipped == (f"pool instance {name}/gone cannot be read",) * 2
    assert sample.pasted is sample.original


def test_a_pool_that_was_not_matched_is_refused(annotations):
    pool = InstancePool.from_arrays([np.full((8, 8, 4), 255, dtype=np.uint8)], [999])
    copy_paste = CopyPaste(pool, CategoryBalancedSampler(pool), UniformScale())
    with pytest.raises(ValueError, match=r"pool\.match\(annotations\.categories\)"):
        TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)
