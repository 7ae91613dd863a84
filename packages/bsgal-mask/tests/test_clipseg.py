"""CLIPSeg with tiny random weights: the loading and calling code is that of the real one."""

from __future__ import annotations

import numpy as np
import pytest

from bsgal_mask import ClipSegSegmenter

NAMES = ["ball_(toy)", "cup", "cup", "dog", "ball_(toy)"]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (32, 32), (90, 20), (32, 32), (7, 50)]
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


@pytest.fixture
def images_of_odd_sizes():
    return [np.full((*shape, 3), 99, np.uint8) for shape in ((1, 1), (3, 5), (1, 60))]


def test_a_batch_gives_the_masks_of_one_by_one(clipseg_folder, images):
    batched = ClipSegSegmenter(clipseg_folder, batch_size=3)
    single = ClipSegSegmenter(clipseg_folder, batch_size=1)
    masks = batched.segment(images, NAMES)
    assert [mask.shape for mask in masks] == [image.shape[:2] for image in images]
    for image, name, mask in zip(images, NAMES, masks, strict=True):
        assert mask.dtype == np.float32
        assert (mask.min(), mask.max()) == (0, 1)
        (alone,) = single.segment([image], [name])
        np.testing.assert_allclose(mask, alone, atol=1e-4)


def test_batches_are_real_and_bounded(clipseg_folder, images, monkeypatch):
    segmenter = ClipSegSegmenter(clipseg_folder, batch_size=2)
    model, seen = segmenter._checkpoint.model, []
    forward = model.forward

    def record(**inputs):
        seen.append(len(inputs["pixel_values"]))
        outputs = forward(**inputs)
        assert not outputs.logits.requires_grad
        return outputs

    monkeypatch.setattr(model, "forward", record)
    segmenter.segment(images, NAMES)
    assert seen == [2, 2, 1]


def test_the_words_decide(clipseg_folder, images):
    segmenter = ClipSegSegmenter(clipseg_folder)
    (cup,) = segmenter.segment(images[:1], ["cup"])
    (dog,) = segmenter.segment(images[:1], ["dog"])
    assert not np.array_equal(cup, dog)
    other = ClipSegSegmenter(clipseg_folder, template="{}")
    (bare,) = other.segment(images[:1], ["a_photo of_a cup"])
    np.testing.assert_allclose(bare, cup, atol=1e-5)


def test_logits_are_enlarged_before_the_sigmoid(clipseg_folder, images, monkeypatch):
    """The reverse order would bend a steep ramp's outline towards the grid of the small map."""
    import torch

    segmenter = ClipSegSegmenter(clipseg_folder, stretch=False)
    ramp = torch.linspace(-20, 4, 32).expand(1, 32, 32)

    def answer(**inputs):
        return type("Output", (), {"logits": ramp})

    monkeypatch.setattr(segmenter._checkpoint.model, "forward", answer)
    (mask,) = segmenter.segment([np.zeros((320, 320, 3), np.uint8)], ["cup"])
    # The ramp is zero at 20/24 of its width, between two of the small map's columns.
    crossing = int(np.argmax(mask[0] >= 0.5))
    assert abs(crossing - (5 + 20 / 24 * 310)) <= 1


def test_shape_drawn_into_the_logits_comes_back(clipseg_folder, drawn, monkeypatch):
    import torch

    image, truth = drawn("disc", side_px=320)
    segmenter = ClipSegSegmenter(clipseg_folder)
    small = np.asarray(truth[::10, ::10], np.float32) * 12 - 6

    def answer(**inputs):
        return type("Output", (), {"logits": torch.from_numpy(small)[None]})

    monkeypatch.setattr(segmenter._checkpoint.model, "forward", answer)
    (mask,) = segmenter.segment([image], ["ball"])
    found = mask >= 0.5
    assert (found & truth).sum() / (found | truth).sum() > 0.85


@pytest.mark.parametrize("stretch", [True, False])
def test_nothing_stands_out_in_a_map_below_the_peak(clipseg_folder, images, stretch):
    segmenter = ClipSegSegmenter(clipseg_folder, min_peak=1.0, stretch=stretch)
    (mask,) = segmenter.segment(images[:1], ["cup"])
    assert not mask.any()


def test_images_of_any_size_are_taken(clipseg_folder, images_of_odd_sizes):
    masks = ClipSegSegmenter(clipseg_folder).segment(images_of_odd_sizes, ["a", "b", "c"])
    assert [mask.shape for mask in masks] == [(1, 1), (3, 5), (1, 60)]


def test_the_config_names_the_weights_and_the_words(clipseg_folder):
    config = ClipSegSegmenter(clipseg_folder).config()
    assert len(config["weights_sha256"]) == 64
    assert config["model"] == clipseg_folder.name
    assert (config["device"], config["dtype"]) == ("cpu", "float32")
    assert config["template"] == "a photo of a {}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"template": "a cup"}, r"`template` must hold \{\} once"),
        ({"template": "{} {other}"}, "`template`"),
        ({"min_peak": 2.0}, r"`min_peak` must lie in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(clipseg_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        ClipSegSegmenter(clipseg_folder, **settings)
