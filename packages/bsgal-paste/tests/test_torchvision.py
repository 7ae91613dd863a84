from __future__ import annotations

import numpy as np
import pytest

from bsgal_paste import AnnotatedImage, CategoryBalancedSampler, CopyPaste, UniformScale, sample_rng

torch = pytest.importorskip("torch", reason="the extra [torchvision] is not installed")
pytest.importorskip("torchvision", reason="the extra [torchvision] is not installed")

from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from bsgal_paste.torchvision import CopyPasteTransform  # noqa: E402


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
        assert got["instance_ids"] == expected.instance_ids
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
