from __future__ import annotations

import copy
import importlib.util
import itertools
import re
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_paste import AnnotatedImage, CategoryBalancedSampler, CopyPaste, UniformScale, sample_rng
from bsgal_paste._lvis import encode_mask
from bsgal_paste._names import NameMatcher, category_names
from bsgal_paste.detectron2 import PasteAnnotations

# Class index to category id: not the identity, so that mixing the two up shows.
CATEGORY_IDS = [2, 7, 1]


@pytest.fixture
def paste(pool) -> CopyPaste:
    sampler = CategoryBalancedSampler(pool, count_range=(3, 6))
    return CopyPaste(pool, sampler, UniformScale(scale_range=(0.15, 0.4)))


def annotations_of(target: AnnotatedImage, kind: str) -> list[dict]:
    entries = []
    for i, mask in enumerate(target.masks):
        left, top, right, bottom = target.boxes_xyxy[i].tolist()
        segmentation = {
            "mask": mask.astype(np.uint8),
            "rle": encode_mask(mask),
            "polygon": [np.array([left, top, right, top, right, bottom, left, bottom])],
        }
        entries.append(
            {
                "bbox": [left, top, right - left, bottom - top],
                "bbox_mode": 1,
                "category_id": CATEGORY_IDS.index(target.category_ids[i]),
                "iscrowd": 0,
                "id": 90 + i,
                **({} if kind == "boxes" else {"segmentation": segmentation[kind]}),
            }
        )
    return entries


@pytest.mark.parametrize("kind", ["mask", "rle", "polygon"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_adapter_gives_the_result_of_the_core(paste, target, kind, image_format):
    adapter = PasteAnnotations(paste, CATEGORY_IDS, seed=5, image_format=image_format)
    image = target.image if image_format == "RGB" else target.image[..., ::-1]
    expected = paste(target, sample_rng(5, 2, 11))
    got, entries, result = adapter(image, annotations_of(target, kind), epoch=2, image_id=11)
    rgb = got if image_format == "RGB" else got[..., ::-1]
    np.testing.assert_array_equal(rgb, expected.image)
    assert result.instance_ids == [entry["instance_id"] for entry in entries]
    assert expected.instance_ids == result.instance_ids
    for i, entry in enumerate(entries):
        np.testing.assert_array_equal(entry["segmentation"], expected.masks[i])
        np.testing.assert_array_equal(entry["bbox"], expected.boxes_xyxy[i])
        assert CATEGORY_IDS[entry["category_id"]] == expected.category_ids[i]
        assert ("id" in entry) == (expected.source_index[i] >= 0)


def test_boxes_alone_are_enough(paste, target):
    adapter = PasteAnnotations(paste, CATEGORY_IDS, seed=5)
    entries = annotations_of(target, "boxes")
    entries.append({**entries[0], "bbox": [500.0, 5.0, 4.0, 4.0]})
    _, got, result = adapter(target.image, entries, epoch=0, image_id=0)
    assert result.n_pasted > 0
    assert len(result.original) == 2, "the box outside the image is left out"
    assert not any("segmentation" in entry for entry in got)


def test_an_image_without_annotations_is_pasted_into(paste, target):
    adapter = PasteAnnotations(paste, CATEGORY_IDS, seed=5)
    _, got, _ = adapter(target.image, [], epoch=0, image_id=0)
    assert got
    assert all("segmentation" in entry for entry in got)


@pytest.fixture
def detectron2_data(monkeypatch) -> types.ModuleType:
    # Version 0.6 uses a name that Pillow has dropped, and a compiled part that masks do not need.
    monkeypatch.setattr(Image, "LINEAR", Image.BILINEAR, raising=False)
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    monkeypatch.setitem(sys.modules, "detectron2._C", types.ModuleType("detectron2._C"))
    return importlib.import_module("detectron2.data")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_detectron2_makes_of_it_has_the_same_masks_and_boxes(paste, target, detectron2_data):
    utils = detectron2_data.detection_utils
    adapter = PasteAnnotations(paste, CATEGORY_IDS, seed=5)
    image, entries, result = adapter(
        target.image, annotations_of(target, "polygon"), epoch=0, image_id=0
    )
    instances = utils.annotations_to_instances(entries, image.shape[:2], mask_format="bitmask")
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), result.masks)
    np.testing.assert_array_equal(instances.gt_boxes.tensor.numpy(), result.boxes_xyxy)
    assert [CATEGORY_IDS[i] for i in instances.gt_classes] == result.category_ids.tolist()


class Mapper:
    """Do what detectron2's `DatasetMapper` does, with a paste behind the augmentations."""

    def __init__(self, detectron2_data, adapter: PasteAnnotations, augmentations: list) -> None:
        self.utils = detectron2_data.detection_utils
        self.transforms = detectron2_data.transforms
        self.adapter = adapter
        self.augmentations = self.transforms.AugmentationList(augmentations)

    def __call__(self, record: dict) -> dict:
        inputs = self.transforms.AugInput(record["image"].copy())
        changes = self.augmentations(inputs)
        image_hw = inputs.image.shape[:2]
        annotations = [
            self.utils.transform_instance_annotations(copy.deepcopy(entry), changes, image_hw)
            for entry in record["annotations"]
        ]
        n_before = len(annotations)
        # As the documentation says for a sampler without epochs.
        epoch = int(np.random.randint(2**31))  # noqa: NPY002
        image, annotations, result = self.adapter(
            inputs.image, annotations, epoch=epoch, image_id=record["image_id"]
        )
        instances = self.utils.annotations_to_instances(annotations, image_hw, "bitmask")
        gone = n_before - len(result.original)
        return {"image": image, "instances": instances, "result": result, "gone": gone}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("crop", ["lsj", "random", "extent"])
def test_objects_that_a_crop_removed_are_left_out_in_loader_workers(
    paste, target, detectron2_data, crop
):
    torch = pytest.importorskip("torch")
    pytest.importorskip("shapely", reason="detectron2 crops polygons with shapely")
    transforms = detectron2_data.transforms
    augmentations = {
        "lsj": [
            transforms.ResizeScale(0.5, 4.0, 96, 128),
            transforms.FixedSizeCrop((96, 128)),
            transforms.RandomFlip(),
        ],
        "random": [transforms.RandomCrop("relative_range", (0.3, 0.3))],
        # Polygons stay whole, up to twenty image sides away.
        "extent": [transforms.RandomExtent((0.05, 0.2), (0.5, 0.5)), transforms.Resize((96, 128))],
    }[crop]
    adapter = PasteAnnotations(paste, CATEGORY_IDS, seed=0)
    entries = annotations_of(target, "polygon")
    records = [
        {"image": target.image, "image_id": i, "annotations": copy.deepcopy(entries)}
        for i in range(8)
    ]
    mapped = detectron2_data.MapDataset(records, Mapper(detectron2_data, adapter, augmentations))
    sampler = detectron2_data.samplers.TrainingSampler(len(records), seed=0)
    loader = torch.utils.data.DataLoader(
        mapped, sampler=sampler, batch_size=4, num_workers=2, collate_fn=list,
        worker_init_fn=detectron2_data.build.worker_init_reset_seed,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    samples = [sample for batch in itertools.islice(loader, 15) for sample in batch]
    assert sum(sample["gone"] for sample in samples) > 5, "the crops remove whole objects"
    for sample in samples:
        instances, result = sample["instances"], sample["result"]
        assert result.image.shape == sample["image"].shape
        np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), result.masks)
        assert instances.gt_masks.tensor.flatten(1).any(1).all()
        assert [CATEGORY_IDS[i] for i in instances.gt_classes] == result.category_ids.tolist()
    assert len({sample["image"].tobytes() for sample in samples}) > 50


def test_an_object_without_polygons_is_left_out(paste, target):
    entries = annotations_of(target, "polygon")
    entries[0]["segmentation"] = []
    _, got, result = PasteAnnotations(paste, CATEGORY_IDS, seed=5)(
        target.image, entries, epoch=0, image_id=0
    )
    assert len(result.original) == 1
    assert {entry.get("id") for entry in got} <= {None, 91}


def test_a_mask_of_another_size_is_refused(paste, target):
    entries = annotations_of(target, "mask")
    entries[0]["segmentation"] = entries[0]["segmentation"][:50]
    with pytest.raises(ValueError, match=r"shape \(50, 128\) does not fit the image of 96 x 128"):
        PasteAnnotations(paste, CATEGORY_IDS, seed=5)(target.image, entries, epoch=0, image_id=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": [1]}, "keypoints cannot be pasted over"),
        ({"bbox_mode": 4}, "`bbox_mode` must be XYXY_ABS"),
        ({"segmentation": None}, "1 of 2 annotations have a segmentation"),
    ],
)
def test_annotations_that_cannot_be_kept_in_step_are_refused(paste, target, changes, message):
    entries = annotations_of(target, "mask")
    entries[1].update(changes)
    if changes.get("segmentation", 1) is None:
        del entries[1]["segmentation"]
    with pytest.raises(ValueError, match=message):
        PasteAnnotations(paste, CATEGORY_IDS, seed=0)(target.image, entries, epoch=0, image_id=0)


def test_a_pool_with_unknown_categories_is_refused(paste):
    with pytest.raises(ValueError, match=r"1 categories that are not in .* \(ids \[2\]"):
        PasteAnnotations(paste, [1, 7], seed=0)
    with pytest.raises(ValueError, match="must be unique"):
        PasteAnnotations(paste, [1, 2, 2], seed=0)
    with pytest.raises(ValueError, match="`image_format` must be"):
        PasteAnnotations(paste, [1, 2], seed=0, image_format="YUV")


def lvis_categories(version: str) -> list[dict]:
    """Give detectron2's table of the categories of LVIS; detectron2 itself is not imported."""
    detectron2 = importlib.util.find_spec("detectron2")
    assert detectron2 is not None
    assert detectron2.origin is not None
    path = Path(detectron2.origin).parent / f"data/datasets/lvis_{version}_categories.py"
    return runpy.run_path(str(path))["LVIS_CATEGORIES"]


@pytest.mark.parametrize("version", ["v1", "v0_5"])
@pytest.mark.parametrize("whole_pool", [True, False])
def test_no_category_of_lvis_stands_in_for_one_that_is_missing(version, whole_pool):
    categories = lvis_categories(version)
    all_names = [category["name"] for category in categories]
    assert len(categories) == {"v1": 1203, "v0_5": 1230}[version]
    words = [words_of(category) for category in categories]
    n_related = 0
    for missing, own_words in zip(categories, words, strict=True):
        # One that shares no word, in its name or a synonym, cannot match; leaving it out saves
        # a minute.
        related = [
            category
            for category, others in zip(categories, words, strict=True)
            if category is not missing and own_words & others
        ]
        n_related += len(related)
        names = all_names if whole_pool else [missing["name"]]
        found = NameMatcher(category_names(related), names).find(missing["name"])
        assert found.category_ids == (), missing["name"]
    assert n_related > 1000


def words_of(category: dict) -> set[str]:
    return set(re.split(r"[\W_]+", " ".join([category["name"], *category["synonyms"]]).lower()))
