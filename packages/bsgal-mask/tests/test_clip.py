"""CLIP with tiny random weights, and the rules that use it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bsgal_mask import (
    Candidates,
    CategoryBar,
    Clip,
    ClipChoice,
    RealCropError,
    RealCrops,
    SimilarityRule,
    build_pool,
    summarise_pool,
)
from bsgal_mask._clip_choice import on_plain


@pytest.fixture
def clip(clip_folder):
    return Clip(clip_folder, batch_size=3)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((40, 30), (32, 32), (9, 80))]


def test_image_features_are_transformers_own(clip, clip_folder, images):
    """Squares need no margin, so the library's whole chain must give the same."""
    import torch
    from transformers import CLIPImageProcessor, CLIPModel

    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(
        images=[Image.fromarray(images[1])], return_tensors="pt"
    )
    tokens = torch.tensor([[72, 5, 73]])
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(clip_folder).eval()
        expected = model(input_ids=tokens, **pixels).image_embeds
    (features,) = clip.image_features([images[1]], margin_value=255)
    np.testing.assert_allclose(features, expected[0].numpy(), atol=1e-5)


def test_text_features_are_transformers_own(clip, clip_folder, clip_tokenizer):
    import torch
    from transformers import CLIPModel

    tokens = clip_tokenizer(["a photo of cup"], return_tensors="pt")
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(clip_folder).eval()
        expected = model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds
    np.testing.assert_allclose(clip.text_features("a photo of cup"), expected[0], atol=1e-5)


def test_features_have_unit_length_in_any_batch(clip, images):
    batched = list(clip.image_features(images * 3, margin_value=255))
    for image, feature in zip(images * 3, batched, strict=True):
        assert np.linalg.norm(feature) == pytest.approx(1, abs=1e-5)
        (alone,) = clip.image_features([image], margin_value=255)
        np.testing.assert_allclose(feature, alone, atol=1e-5)


def test_images_are_taken_a_batch_at_a_time(clip, images):
    taken = []

    def stream():
        for index, image in enumerate(images * 3):
            taken.append(index)
            yield image

    features = clip.image_features(stream(), margin_value=0)
    next(features)
    assert taken == [0, 1, 2]


def test_an_image_that_is_not_square_loses_nothing(clip):
    wide = np.zeros((20, 80, 3), np.uint8)
    marked = wide.copy()
    marked[:, :10] = 255
    first, second = clip.image_features([wide, marked], margin_value=0)
    assert not np.allclose(first, second, atol=1e-4)


class StubClip:
    """The share of an image that is as red as the ball, as the cosine with any text."""

    def __init__(self):
        self.texts = []

    def config(self):
        return {"model": "stub"}

    def image_features(self, images, *, margin_value):
        for image in images:
            self.last = image
            share = float(((image[..., 0] > 140) & (image[..., 1] < 80)).mean())
            yield np.array([share, 0], np.float32)

    def text_features(self, text):
        self.texts.append(text)
        return np.array([1, 0], np.float32)


def test_the_method_whose_cut_out_scores_highest_is_taken(drawn):
    image, truth = drawn("disc")
    stub = StubClip()
    labels = {"none": truth & False, "half": truth & (np.arange(96) < 40), "all": truth}
    candidates = Candidates(image=image, category_name="ball_(toy)", labels=labels)
    one, two = ClipChoice(clip=stub).choose([candidates, candidates])
    assert one == two
    assert one.method == "all"
    assert one.clip_score == pytest.approx(truth.mean(), abs=0.01)
    assert 0 < one.agreement < 0.5
    assert set(stub.texts) == {"a photo of ball (toy)"}
    assert (stub.last[~truth] == 255).all()


def test_without_any_mask_there_is_no_score(drawn):
    image, truth = drawn("disc")
    candidates = Candidates(image=image, category_name="x", labels={"a": truth & False})
    (chosen,) = ClipChoice(clip=StubClip()).choose([candidates])
    assert (chosen.method, chosen.clip_score) == ("a", None)


def test_on_plain_keeps_the_object(drawn):
    image, truth = drawn("ring")
    black = on_plain(image, truth, 0)
    np.testing.assert_array_equal(black[truth], image[truth])
    assert not black[~truth].any()


def discs(sizes, drawn):
    """Images whose stub score is about the square of `size`."""
    image, _ = drawn("disc")
    rows, columns = np.indices(image.shape[:2])
    result = {}
    for name, size in sizes.items():
        inside = np.maximum(abs(rows - 48), abs(columns - 48)) < 48 * size
        picture = np.full_like(image, 220)
        picture[inside] = (180, 40, 40)
        result[name] = picture
    return result


def test_a_category_below_the_bar_keeps_its_best(
    make_image_set, drawn, make_stub, tmp_path, manifest_of
):
    """Category 7 reaches the bar; the same images below it in category 8 are all there is."""
    sizes = {"high": 0.7, "low": 0.5, "near": 0.68}
    images = make_image_set(discs(sizes, drawn))
    manifest = images / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    poor = [
        row | {"sample_id": f"{row['sample_id']}8", "category_id": 8}
        for row in rows
        if row["sample_id"] != "high"
    ]
    lowest = rows[1] | {"sample_id": "low9", "category_id": 9, "category_name": "nine"}
    with manifest.open("a") as lines:
        for row in [*poor, lowest]:
            lines.write(json.dumps(row) + "\n")
    bar = CategoryBar(min_score=0.48, tolerance=0.001)
    choice = ClipChoice(clip=StubClip(), category_bar=bar)
    pool = tmp_path / "pool"
    summary = build_pool(images, pool, methods=[make_stub()], choose=choice)
    last = {row["instance_id"]: row for row in manifest_of(pool)}
    kept = {name for name, row in last.items() if row["status"] == "kept"}
    assert kept == {"high", "near8", "low9"}
    assert (
        last["near"]["reason"]
        == f"clip-score: {last['near']['clip_score']:.4f}, at least 0.48 is required"
    )
    assert last["low8"]["clip_score"] < last["near8"]["clip_score"] - 0.1
    files = {path.stem for path in pool.rglob("*.png")}
    assert files == kept
    assert all((pool / last[name]["file"]).is_file() for name in kept)
    assert summary == summarise_pool(pool)
    assert (summary.n_kept, summary.dropped_by_reason) == (3, {"clip-score": 3})
    before = (pool / "manifest.jsonl").read_bytes()
    assert build_pool(images, pool, methods=[make_stub()], choose=choice) == summary
    assert (pool / "manifest.jsonl").read_bytes() == before


def test_a_run_that_is_stopped_ends_in_the_same_pool(make_image_set, drawn, make_stub, tmp_path):
    images = make_image_set(discs({"a": 0.5, "b": 0.6, "c": 0.55, "d": 0.599}, drawn))
    choice = ClipChoice(clip=StubClip(), category_bar=CategoryBar(min_score=0.9, tolerance=0.02))
    settings = {"methods": [make_stub()], "choose": choice, "batch_size": 1}
    build_pool(images, tmp_path / "whole", **settings)

    def stop(done, total):
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            build_pool(images, tmp_path / "stopped", **settings, progress=stop)
    build_pool(images, tmp_path / "stopped", **settings)
    whole, stopped = (
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("whole", "stopped")
    )
    assert whole == stopped
    assert {name for name in whole if name.endswith("png")} == {
        "instances/7/b.png",
        "instances/7/d.png",
    }


@pytest.fixture
def lvis(tmp_path):
    """Two annotated images: red squares of category 7, one blue square of category 8."""
    folder = tmp_path / "real"
    (folder / "train").mkdir(parents=True)
    annotations, images = [], []
    for image_id, colour in ((1, (200, 30, 30)), (2, (30, 30, 200))):
        picture = np.full((120, 160, 3), 90, np.uint8)
        picture[40:80, 60:110] = colour
        name = f"train/{image_id}.png"
        Image.fromarray(picture).save(folder / name)
        url = {"coco_url": f"http://images/{name}"} if image_id == 1 else {"file_name": name}
        images.append({"id": image_id, "width": 160, "height": 120, **url})
    square = {"segmentation": [[60, 40, 110, 40, 110, 80, 60, 80]], "bbox": [60, 40, 50, 40]}
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 7, **square},
        {"id": 2, "image_id": 1, "category_id": 7, **square},
        {"id": 3, "image_id": 2, "category_id": 8, **square},
    ]
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path, folder


class ColourClip(StubClip):
    """The mean colour of an image as its features; remembers what it saw."""

    def __init__(self):
        self.seen = []

    def image_features(self, images, *, margin_value):
        for image in images:
            self.seen.append(image)
            colour = image.reshape(-1, 3).mean(axis=0) + 1
            yield (colour / np.linalg.norm(colour)).astype(np.float32)


def test_real_crops_have_40_px_of_blurred_surroundings(lvis):
    clip = ColourClip()
    crops = RealCrops.from_lvis(clip, *lvis)
    assert [crop.shape for crop in clip.seen] == [(120, 130, 3)] * 3
    first = clip.seen[0]
    # The object itself is sharp up to its outline; its surroundings are mixed with it.
    assert (first[40:80, 40:90] == (200, 30, 30)).all()
    assert 90 < first[38, 60, 0] < 200
    assert sorted(crops.means) == [7, 8]
    assert crops.config()["max_per_category"] == 100
    assert len(RealCrops.from_lvis(clip, *lvis, max_per_category=1).means) == 2
    assert len(clip.seen) == 5


def test_the_features_of_real_objects_are_kept_in_a_cache(lvis, tmp_path):
    cache = tmp_path / "features.npz"
    clip = ColourClip()
    first = RealCrops.from_lvis(clip, *lvis, cache=cache)
    n_seen = len(clip.seen)
    second = RealCrops.from_lvis(clip, *lvis, cache=cache)
    assert len(clip.seen) == n_seen
    assert first.config() == second.config()
    assert first.means.keys() == second.means.keys()
    for category_id, mean in first.means.items():
        np.testing.assert_array_equal(second.means[category_id], mean)
    RealCrops.from_lvis(clip, *lvis, cache=cache, max_per_category=1)
    assert len(clip.seen) == n_seen + 2
    cache.write_bytes(b"something else")
    with pytest.raises(RealCropError, match=r"features\.npz is not a cache"):
        RealCrops.from_lvis(clip, *lvis, cache=cache)


def test_the_mean_cosine_to_all_real_objects_decides(lvis, drawn):
    clip = ColourClip()
    rule = SimilarityRule(references=RealCrops.from_lvis(clip, *lvis), min_similarity=0.9)
    image, truth = drawn("disc")
    red, blue, unknown = rule.similarities([image] * 3, [truth] * 3, [7, 8, 9])
    assert (clip.seen[-1][~truth] == 0).all()
    features = [next(clip.image_features([crop], margin_value=0)) for crop in clip.seen[:2]]
    (found,) = clip.image_features([np.where(truth[..., None], image, 0)], margin_value=0)
    assert red == pytest.approx(np.mean([found @ feature for feature in features]), abs=1e-6)
    assert red > blue
    assert unknown is None
    assert rule.reason_to_drop(None) is None
    assert rule.reason_to_drop(0.9) is None
    assert rule.reason_to_drop(0.25) == (
        "similarity: 0.2500 to the real objects of its category, at least 0.9 is required"
    )


def test_a_pool_records_the_similarity(
    lvis, make_image_set, drawn, make_stub, tmp_path, manifest_of
):
    images = make_image_set({"a": drawn("disc")[0], "empty": np.zeros((50, 50, 3), np.uint8)})
    crops = RealCrops.from_lvis(ColourClip(), *lvis)
    for bar, status in ((-1, "kept"), (1, "dropped")):
        pool = tmp_path / status
        rule = SimilarityRule(references=crops, min_similarity=bar)
        build_pool(images, pool, methods=[make_stub()], similarity=rule)
        row, empty = manifest_of(pool)
        assert row["status"] == status
        assert 0 < row["clip_similarity"] < 1
        assert empty["clip_similarity"] is None
    assert row["reason"].startswith("similarity: 0.")
    config = json.loads((pool / "meta.json").read_text())["config"]["similarity"]
    assert config["min_similarity"] == 1
    assert len(config["annotations_sha256"]) == 64


def test_real_clip_features_go_through_a_whole_run(
    clip, lvis, make_image_set, drawn, make_stub, tmp_path, manifest_of
):
    images = make_image_set({"a": drawn("disc")[0], "b": drawn("ring")[0]})
    build_pool(
        images,
        tmp_path / "pool",
        methods=[make_stub("one"), make_stub("two", grow_px=3)],
        choose=ClipChoice(clip=clip, category_bar=CategoryBar(min_score=-1)),
        similarity=SimilarityRule(references=RealCrops.from_lvis(clip, *lvis), min_similarity=-1),
    )
    for row in manifest_of(tmp_path / "pool"):
        assert row["status"] == "kept"
        assert -1 <= row["clip_score"] <= 1
        assert -1 <= row["clip_similarity"] <= 1


def test_annotations_that_cannot_be_used_are_named(lvis, tmp_path):
    path, folder = lvis
    good = json.loads(path.read_text())

    def fails(match, **changes):
        path.write_text(json.dumps(good | changes))
        with pytest.raises(RealCropError, match=match):
            RealCrops.from_lvis(ColourClip(), path, folder)

    image, annotation = good["images"][0], good["annotations"][0]
    fails("must be a plain path inside", images=[image | {"file_name": "../x.png"}])
    fails("annotation 1: .image_id. must be the id of one of the images", images=[])
    fails(
        "annotation 1: .segmentation. must be polygons",
        annotations=[annotation | {"segmentation": {}}],
    )
    fails("lies outside of the image", annotations=[annotation | {"bbox": [900, 0, 9, 9]}])
    (folder / "train/1.png").write_bytes(b"no image")
    fails("train/1.png: damaged or not")
    path.write_text("[]")
    with pytest.raises(RealCropError, match="not an LVIS annotation file"):
        RealCrops.from_lvis(ColourClip(), path, folder)
    with pytest.raises(RealCropError, match="cannot read"):
        RealCrops.from_lvis(ColourClip(), tmp_path / "absent.json", folder)
    with pytest.raises(ValueError, match="`max_per_category`"):
        RealCrops.from_lvis(ColourClip(), path, folder, max_per_category=0)


def test_impossible_rules_are_refused(lvis):
    with pytest.raises(ValueError, match="`min_similarity`"):
        SimilarityRule(references=RealCrops(StubClip(), {}, {}), min_similarity=60)
    with pytest.raises(ValueError, match="`template`"):
        ClipChoice(clip=StubClip(), template="cup")
