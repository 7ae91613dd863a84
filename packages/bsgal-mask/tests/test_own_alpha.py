from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bsgal_mask import AlphaSegmenter, BorderSegmenter, Edges, SegmentationError, build_pool
from bsgal_mask.cli import main


@pytest.fixture
def transparent(drawn):
    """A red disc with a soft edge, on colours that stand for nothing, and its alpha."""
    colours, mask = drawn("disc")
    alpha = np.where(mask, 255, 0).astype(np.uint8)
    inner = np.roll(mask, 1, axis=0) & np.roll(mask, -1, axis=0)
    alpha[mask & ~inner] = 140
    return np.dstack([colours, alpha])


@pytest.mark.parametrize("object_colours", [False, True])
def test_alpha_becomes_the_mask_to_the_last_level(
    object_colours, transparent, make_image_set, manifest_of, tmp_path
):
    images = make_image_set({"a": transparent})
    pool = tmp_path / "pool"
    edges = Edges(object_colours=object_colours)
    assert build_pool(images, pool, methods=[AlphaSegmenter()], edges=edges).n_kept == 1
    row = manifest_of(pool)[0]
    assert row["method"] == "alpha"
    x, y, width, height = row["bbox_xywh"]
    cut = np.asarray(Image.open(pool / row["file"]))
    source = transparent[y : y + height, x : x + width]
    np.testing.assert_array_equal(cut[..., 3], source[..., 3])
    visible = cut[..., 3] > 0
    np.testing.assert_array_equal(cut[visible], source[visible])
    assert visible.sum() == (transparent[..., 3] > 0).sum()


def test_other_methods_see_the_colours_alone(
    transparent, make_stub, make_image_set, manifest_of, tmp_path
):
    class OnlyRgb(type(make_stub())):
        def segment(self, images, category_names):
            assert {image.shape[2] for image in images} == {3}
            return super().segment(images, category_names)

    images = make_image_set({"a": transparent})
    methods = [OnlyRgb(), BorderSegmenter(), AlphaSegmenter()]
    assert build_pool(images, tmp_path / "pool", methods=methods).n_kept == 1
    assert set(manifest_of(tmp_path / "pool")[0]["scores"]) == {"stub", "border", "alpha"}


def test_image_without_alpha_is_dropped_with_the_reason(
    drawn, transparent, make_image_set, manifest_of, tmp_path
):
    images = make_image_set({"flat": drawn("disc")[0], "a": transparent})
    command = ["run", str(images), "--out", str(tmp_path / "pool"), "--method", "alpha", "--quiet"]
    assert main(command) == 0
    flat, kept = manifest_of(tmp_path / "pool")
    assert flat["reason"] == (
        "method: alpha failed (the image has no alpha; choose another method)"
    )
    assert kept["status"] == "kept"


def test_flat_images_are_refused():
    with pytest.raises(SegmentationError, match="the image has no alpha"):
        AlphaSegmenter().segment([np.zeros((4, 4, 3), np.uint8)], ["ball"])
