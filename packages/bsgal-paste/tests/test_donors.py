from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_paste import (
    PRESETS,
    AnnotatedImage,
    AnnotationError,
    CategoryBalancedSampler,
    CopyPaste,
    DonorParameters,
    ImageDonors,
    InstancePool,
    LvisDonors,
    PasteConfig,
    UniformScale,
)
from bsgal_paste._lvis import encode_mask


def photo(value: int, height: int = 60, width: int = 80) -> AnnotatedImage:
    """An image of one grey with a disc in each half, category 3 left and 4 right."""
    rows, columns = np.mgrid[:height, :width]
    masks = np.stack([np.hypot(rows - 30, columns - x) < 12 for x in (20, 60)])
    image = np.full((height, width, 3), value, dtype=np.uint8)
    return AnnotatedImage(image, masks, [3, 4])


def blank() -> AnnotatedImage:
    return AnnotatedImage(np.zeros((60, 80, 3), np.uint8), np.zeros((0, 60, 80), bool), [])


def copier(*images: AnnotatedImage, **options) -> CopyPaste:
    return CopyPaste(None, source="self", donors=ImageDonors(images), **options)


def unscaled(seed: int, **changes) -> DonorParameters:
    fields = {"index": 0, "scale": 1.0, "flip": False, "offset_xy": (0.0, 0.0)}
    return DonorParameters(**{**fields, "selection_seed": seed, **changes})


def copied(paste: CopyPaste, donor: DonorParameters):
    drawn = paste.sample_parameters((60, 80), np.zeros(0, np.int64), np.random.default_rng(0))
    return paste.apply(blank(), replace(drawn, donor=donor))


def test_copies_of_an_unscaled_donor_are_exact():
    donor = photo(150)
    seen = set()
    for seed in range(30):
        result = copied(copier(donor), unscaled(seed))
        for mask, name, category in zip(
            result.masks, result.instance_ids, result.category_ids, strict=True
        ):
            index = int(name.removeprefix("donor-0-"))
            np.testing.assert_array_equal(mask, donor.masks[index])
            assert category == donor.category_ids[index]
        np.testing.assert_array_equal(result.image[..., 0] > 0, result.masks.any(axis=0))
        assert set(result.origins) <= {"self"}
        seen.add(tuple(sorted(result.instance_ids)))
    both = ("donor-0-0", "donor-0-1")
    assert seen == {(), both[:1], both[1:], both}, "every subset occurs"


def test_a_donor_is_mirrored_scaled_and_moved_as_a_whole():
    donor = photo(150)
    both = next(s for s in range(40) if copied(copier(donor), unscaled(s)).n_pasted == 2)
    mirrored = copied(copier(donor), unscaled(both, flip=True))
    by_name = dict(zip(mirrored.instance_ids, mirrored.masks, strict=True))
    np.testing.assert_array_equal(by_name["donor-0-0"], donor.masks[0][:, ::-1])
    small = copied(copier(donor), unscaled(both, scale=0.5, offset_xy=(1.0, 1.0)))
    by_name = dict(zip(small.instance_ids, small.boxes_xyxy, strict=True))
    # Half the size, against the lower right corner: 40 px to the right, 30 px down.
    np.testing.assert_allclose(by_name["donor-0-1"], [64.5, 39.5, 76, 51], atol=1)
    large = copied(copier(donor), unscaled(both, scale=2.0))
    assert large.visible_frac.min() < 1, "twice the size, part of it lies outside"


def test_every_donor_is_drawn_the_last_one_too():
    donors = ImageDonors([photo(10), photo(20), photo(30)])
    rng = np.random.default_rng(0)
    drawn = [donors.sample(rng, np.zeros(0, np.int64)) for _ in range(200)]
    assert set(drawn) == {0, 1, 2}
    assert donors.read(2).image[0, 0, 0] == 30


def test_at_most_so_many_are_copied():
    paste = copier(photo(150), max_donor_instances=1)
    assert max(copied(paste, unscaled(seed)).n_pasted for seed in range(30)) == 1


def test_both_pastes_the_pool_over_the_copies(disc):
    pool = InstancePool.from_arrays([disc(40, 40, (255, 0, 0))], [9])
    paste = CopyPaste(
        pool,
        CategoryBalancedSampler(pool, count_range=(2, 3)),
        UniformScale(scale_range=(0.5, 0.6)),
        source="both",
        donors=ImageDonors([photo(150)]),
    )
    origins = [
        origin
        for seed in range(20)
        for origin in [paste(blank(), np.random.default_rng(seed)).origins]
    ]
    assert any(set(found) == {"self", "pool"} for found in origins)
    assert all(found == sorted(found, reverse=True) for found in origins), "self before pool"


def test_nothing_is_pasted_from_nowhere(target):
    result = CopyPaste(None, source="none")(target, np.random.default_rng(0))
    assert result.n_pasted == 0
    np.testing.assert_array_equal(result.image, target.image)


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("pool", {"pool", "donors"}, "which takes no `donors`"),
        ("pool", set(), "which needs `pool`"),
        ("self", {"pool", "donors"}, "which takes no `pool`"),
        ("self", set(), "which needs `donors`"),
        ("both", {"pool"}, "which needs `donors`"),
        ("both", {"donors"}, "which needs `pool`"),
        ("none", {"pool"}, "which takes no `pool`"),
        ("none", {"donors"}, "which takes no `donors`"),
        ("syn_copy", {"pool"}, "must be one of"),
    ],
)
def test_a_source_that_disagrees_with_what_is_given_is_refused(pool, source, given, message):
    donors = ImageDonors([photo(1)]) if "donors" in given else None
    with pytest.raises(ValueError, match=f"`source`.*{message}"):
        PasteConfig(source=source, scale_range=(0.1, 0.2)).build(
            pool if "pool" in given else None, donors=donors
        )


def test_the_simple_copy_paste_preset_has_the_published_numbers():
    config = PRESETS["simple_copy_paste"]
    paste = config.build(donors=ImageDonors([photo(1)]))
    assert (paste.source, paste.donor_scale_range, paste.flip_prob) == ("self", (0.1, 2.0), 0.5)
    assert config.min_visible_frac == 0, "only what is fully hidden goes"
    drawn = [
        paste.sample_parameters((60, 80), np.zeros(0, np.int64), np.random.default_rng(s)).donor
        for s in range(300)
    ]
    scales = [donor.scale for donor in drawn]
    assert 0.1 <= min(scales) < 0.15
    assert 1.95 < max(scales) <= 2.0


def test_instances_cannot_be_copied_by_box():
    boxed = AnnotatedImage.from_boxes(photo(9).image, [[5, 5, 30, 30]], [3])
    with pytest.raises(ValueError, match=r"\[0\] have boxes only; instances are copied by mask"):
        ImageDonors([boxed])


def write_lvis(root: Path, *, segmented: bool = True) -> dict:
    donor = photo(150)
    Image.fromarray(donor.image).save(root / "a.png")
    annotations = [
        {"id": 40 + i, "image_id": 1, "category_id": int(donor.category_ids[i]),
         "bbox": [0, 0, 5, 5], **({"segmentation": encode_mask(mask)} if segmented else {})}
        for i, mask in enumerate(donor.masks)
    ]  # fmt: skip
    return {
        "images": [
            {"id": 1, "width": 80, "height": 60, "file_name": "a.png"},
            {"id": 2, "width": 80, "height": 60, "file_name": "without annotation.png"},
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "c"}, {"id": 4, "name": "d"}],
    }


def test_donors_come_from_an_lvis_file_by_annotation(tmp_path):
    donors = LvisDonors(write_lvis(tmp_path), tmp_path)
    rng = np.random.default_rng(0)
    assert {donors.sample(rng, np.zeros(0, np.int64)) for _ in range(20)} == {0}
    donor = donors.read(0)
    assert donor.instance_ids == ["annotation-40", "annotation-41"]
    np.testing.assert_array_equal(donor.masks, photo(150).masks)


def test_crowds_are_not_copied(tmp_path):
    content = write_lvis(tmp_path)
    content["annotations"][0]["iscrowd"] = 1
    assert LvisDonors(content, tmp_path).read(0).instance_ids == ["annotation-41"]
    content["annotations"][1]["iscrowd"] = 1
    with pytest.raises(ValueError, match="no annotation has a segmentation"):
        LvisDonors(content, tmp_path)


def test_annotations_without_masks_are_no_donors(tmp_path):
    with pytest.raises(ValueError, match="no annotation has a segmentation"):
        LvisDonors(write_lvis(tmp_path, segmented=False), tmp_path)


def test_an_unreadable_donor_raises_or_is_named(tmp_path, target):
    donors = LvisDonors(write_lvis(tmp_path), tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    rng = np.random.default_rng(0)
    with pytest.raises(AnnotationError, match="image 1: cannot decode"):
        CopyPaste(None, source="self", donors=donors)(target, rng)
    result = CopyPaste(None, source="self", donors=donors, on_corrupt="skip")(target, rng)
    assert [(gone.reason, gone.instance_id) for gone in result.removed] == [("corrupt", "donor-0")]
