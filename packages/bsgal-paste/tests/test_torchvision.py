from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import AnnotatedImage, CategoryBalancedSampler, CopyPaste, UniformScale, sample_rng

torch = pytest.importorskip("torch", reason="the extra [torchvision] is not installed")
pytest.importorskip("torchvision", reason="the extra [torchvision] is not installed")

from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from bsgal_paste.torchvision import (  # noqa: E402
    CopyPasteTransform,
    instance_values,
    pool_ids,
)


@pytest.fixture
def paste(pool) -> CopyPaste:
    sampler = CategoryBalancedSampler(pool, count_range=(3, 6))
    return CopyPaste(pool, sampler, UniformScale(scale_range=(0.15, 0.4)))


def tensors(target: AnnotatedImage, image_id: int = 7, *, box_format: str = "XYXY"):
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(target.boxes_xyxy).float(),
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=target.image_hw,
    )
    return (
        tv_tensors.Image(torch.from_numpy(target.image.transpose(2, 0, 1).copy())),
        {
            "boxes": v2.functional.convert_bounding_box_format(boxes, new_format=box_format),
            "masks": tv_tensors.Mask(torch.from_numpy(target.masks.copy())),
            "labels": torch.from_numpy(target.category_ids),
            "area": torch.tensor(target.masks.sum(axis=(1, 2))),
            "iscrowd": torch.tensor([0, 1]),
            "image_id": image_id,
        },
    )


def test_the_transform_gives_the_result_of_the_core(paste, target):
    transform = CopyPasteTransform(paste, seed=5)
    transform.set_epoch(3)
    for image_id in range(10):
        expected = paste(target, sample_rng(5, 3, image_id))
        image, got = transform(*tensors(target, image_id))
        assert isinstance(image, tv_tensors.Image)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected.image)
        np.testing.assert_array_equal(got["masks"].numpy(), expected.masks)
        np.testing.assert_array_equal(got["boxes"].numpy(), expected.boxes_xyxy)
        assert isinstance(got["boxes"], tv_tensors.BoundingBoxes)
        np.testing.assert_array_equal(got["labels"].numpy(), expected.category_ids)
        assert pool_ids(got) == expected.instance_ids
        np.testing.assert_array_equal(got["area"].numpy(), expected.areas)
        crowds = [i == 1 for i in expected.source_index.tolist()]
        assert got["iscrowd"].tolist() == crowds


def test_boxes_keep_their_format(paste, target):
    transform = CopyPasteTransform(paste, seed=5)
    _, got = transform(*tensors(target, box_format="CXCYWH"))
    left, top, right, bottom = paste(target, sample_rng(5, 0, 7)).boxes_xyxy.T
    assert got["boxes"].format == tv_tensors.BoundingBoxFormat.CXCYWH
    expected = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1)
    np.testing.assert_array_equal(got["boxes"].numpy(), expected)


def test_the_pair_that_came_in_is_kept_untouched_if_asked(paste, target):
    image, annotations = tensors(target)
    before = image.clone()
    _, got = CopyPasteTransform(paste, seed=0, keep_original=True)(image, annotations)
    assert got["original"][0] is image
    assert got["original"][1] is annotations
    assert torch.equal(image, before)
    assert len(annotations["labels"]) == 2


def test_boxes_alone_are_enough(paste, target):
    image, annotations = tensors(target)
    for key in ("masks", "area", "iscrowd"):
        del annotations[key]
    _, got = CopyPasteTransform(paste, seed=0)(image, annotations)
    assert "masks" not in got
    assert len(got["boxes"]) == len(got["labels"]) == len(got["instance_ids"]) > 2


class Images(torch.utils.data.Dataset):
    def __init__(self, transform, target: AnnotatedImage) -> None:
        self.transform, self.target = transform, target

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        image, target = self.transform(*tensors(self.target, index))
        return image.numpy().tobytes(), target["boxes"].numpy().tobytes()


def test_the_number_of_workers_changes_nothing_and_the_epoch_reaches_them(paste, target):
    transform = CopyPasteTransform(paste, seed=1)
    dataset = Images(transform, target)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, persistent_workers=True
    )
    seen = []
    for epoch in (0, 1):
        transform.set_epoch(epoch)
        seen.append([tuple(sample) for sample in loader])
        assert seen[-1] == [dataset[i] for i in range(8)]
    assert seen[0] != seen[1]


# The pool's instances are red, green and blue.
CHANNEL_OF = {"memory-0": 0, "memory-1": 1, "memory-2": 2}
CATEGORY_OF = {"memory-0": 1, "memory-1": 2, "memory-2": 2}


def scattered(n: int = 6) -> AnnotatedImage:
    """Small objects near the borders, which crops cut off or leave as a sliver of their box."""
    masks = np.zeros((n, 96, 128), dtype=bool)
    for i, mask in enumerate(masks):
        left, top = (i * 41) % 110, (i * 29) % 80
        # The box is full size, the object in it two diagonal specks.
        mask[top : top + 2, left : left + 2] = True
        mask[top + 13 : top + 15, left + 14 : left + 16] = True
    return AnnotatedImage(np.full((96, 128, 3), 90, dtype=np.uint8), masks, 3 + np.arange(n))


def with_crowds(n: int = 6):
    image, target = tensors(scattered(n))
    return image, target | {"iscrowd": torch.arange(n) % 2}


CROPS = {
    "iou": [v2.RandomIoUCrop()],
    "jitter": [
        v2.ScaleJitter((96, 128), (0.3, 2.0)),
        v2.RandomCrop((64, 64), pad_if_needed=True),
    ],
}


class Cropped(torch.utils.data.Dataset):
    def __init__(self, transform: v2.Compose) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int):
        image, target = with_crowds()
        return self.transform(image, target | {"image_id": index})


def loaded(transforms: list) -> list:
    loader = torch.utils.data.DataLoader(
        Cropped(v2.Compose(transforms)), batch_size=None, num_workers=2,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return list(loader)


@pytest.mark.parametrize("crop", CROPS)
def test_what_crops_leave_can_be_pasted_over(paste, crop):
    transform = [*CROPS[crop], v2.SanitizeBoundingBoxes(labels_getter=instance_values)]
    n_empty = 0
    for image, target in loaded([*transform, Before(), CopyPasteTransform(paste, seed=0)]):
        n_empty += target["n_empty"]
        n = len(target["boxes"])
        assert target["masks"].shape == (n, *image.shape[1:])
        assert target["masks"].flatten(1).any(1).all()
        ids = pool_ids(target)
        assert len(target["labels"]) == len(ids) == len(target["iscrowd"]) == n
        real = torch.tensor([name is None for name in ids], dtype=torch.bool)
        assert (target["iscrowd"][real] == (target["labels"][real] - 3) % 2).all()
        assert not target["iscrowd"][~real].any()
    assert n_empty > 0, "the crops leave boxes whose objects are gone"


class Before(v2.Transform):
    """Count the instances without a pixel."""

    def forward(self, image, target):
        empty = ~target["masks"].flatten(1).any(1) if len(target["masks"]) else torch.zeros(0)
        return image, target | {"n_empty": int(empty.sum())}


@pytest.mark.parametrize("crop", CROPS)
def test_the_ids_stay_with_their_boxes_through_later_crops(paste, crop):
    sanitize = v2.SanitizeBoundingBoxes(labels_getter=instance_values)
    n_lost = n_seen = 0
    paste.aspect_range = (1.0, 1.0)
    for image, target in loaded([CopyPasteTransform(paste, seed=0), *CROPS[crop], sanitize]):
        ids = pool_ids(target)
        n_lost += len(target["instance_names"]) - sum(name is not None for name in ids)
        for name, mask, label in zip(ids, target["masks"], target["labels"].tolist(), strict=True):
            if name is None:
                assert label >= 3
                continue
            assert label == CATEGORY_OF[name]
            if mask.sum() >= 30:
                seen = image[:, mask.bool()].float().median(dim=1).values
                assert int(seen.argmax()) == CHANNEL_OF[name]
                n_seen += 1
    assert n_lost > 10
    assert n_seen > 10


def test_ids_that_were_left_behind_are_noticed(paste):
    image, target = CopyPasteTransform(paste, seed=0)(*with_crowds())
    target["boxes"][0] = 0
    _, target = v2.SanitizeBoundingBoxes()(image, target)
    with pytest.raises(ValueError, match="labels_getter=instance_values"):
        pool_ids(target)


def test_boxes_that_a_crop_left_without_area_are_left_out(paste):
    image, target = with_crowds()
    del target["masks"], target["area"]
    target["boxes"][1] = torch.tensor([5.0, 5.0, 5.0, 9.0])
    target["boxes"][2] = torch.tensor([200.0, 5.0, 210.0, 9.0])
    _, got = CopyPasteTransform(paste, seed=0)(image, target)
    real = [name is None for name in pool_ids(got)]
    labels = [label for label, is_real in zip(got["labels"].tolist(), real, strict=True) if is_real]
    assert set(labels) <= {3, 6, 7, 8}
    crowds = [crowd for crowd, is_real in zip(got["iscrowd"], real, strict=True) if is_real]
    assert [int(crowd) for crowd in crowds] == [(label - 3) % 2 for label in labels]


def test_a_second_paste_keeps_the_ids_of_the_first(paste):
    transform = v2.Compose([CopyPasteTransform(paste, seed=0), CopyPasteTransform(paste, seed=1)])
    _, got = transform(*with_crowds())
    ids = pool_ids(got)
    once = CopyPasteTransform(paste, seed=0)(*with_crowds())[1]["instance_names"]
    assert len(got["instance_names"]) > len(once) > 0
    labels = got["labels"].tolist()
    assert all(CATEGORY_OF[name] == label for name, label in zip(ids, labels, strict=True) if name)


def test_it_composes_with_other_transforms(paste, target):
    transform = v2.Compose(
        [v2.RandomHorizontalFlip(1.0), CopyPasteTransform(paste, seed=1), v2.ToDtype(torch.float32)]
    )
    image, got = transform(*tensors(target))
    assert image.shape == (3, 96, 128)
    assert len(got["masks"]) == len(got["boxes"])


def spoilt(target, **changes):
    image, annotations = tensors(target)
    annotations.update(changes)
    return image, {key: value for key, value in annotations.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": None}, ValueError, r"lacks \['labels'\]"),
        ({"image_id": None}, ValueError, r"lacks \['image_id'\].*seeded"),
        ({"boxes": torch.zeros(2, 4)}, TypeError, "must be a `tv_tensors.BoundingBoxes`"),
        ({"labels": torch.zeros(3)}, ValueError, "has 3 entries for 2 boxes"),
        ({"depth": torch.zeros(2)}, ValueError, r"`target\['depth'\]` has one entry per instance"),
    ],
)
def test_a_target_that_cannot_be_kept_in_step_is_refused(paste, target, changes, error, message):
    with pytest.raises(error, match=message):
        CopyPasteTransform(paste, seed=0)(*spoilt(target, **changes))


def test_a_float_image_is_refused(paste, target):
    image, annotations = tensors(target)
    with pytest.raises(TypeError, match=r"must be a uint8 tensor.*ToDtype"):
        CopyPasteTransform(paste, seed=0)(image.float(), annotations)
