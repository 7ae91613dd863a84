from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from bsgal_paste import PRESETS, InstancePool, LvisDonors, PasteConfig, cli
from bsgal_paste._compose import ComposeConfig, compose
from bsgal_paste._lvis import encode_mask, load_lvis
from bsgal_paste._manifest import ManifestAppender

RECIPE = PasteConfig(count_range=(3, 7), scale_range=(0.2, 0.5))
PNG = ComposeConfig(image_format="png")


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[dict, Path]:
    """Six photographs-to-be with one rectangle of category 1 each; category 2 is known absent."""
    root = tmp_path / "photos"
    root.mkdir()
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / f"{i}.png")
        mask = np.zeros((48, 64), dtype=bool)
        mask[5:30, 10 + i : 40] = True
        images.append(
            {"id": 70 + i, "width": 64, "height": 48, "file_name": f"{i}.png",
             "neg_category_ids": [2, 4], "not_exhaustive_category_ids": [1]}
        )  # fmt: skip
        annotations.append(
            {"id": 500 + i, "image_id": 70 + i, "category_id": 1,
             "bbox": [10 + i, 5, 30 - i, 25], "segmentation": encode_mask(mask)}
        )  # fmt: skip
    categories = [
        {"id": c, "name": f"thing_{c}", "frequency": "r", "image_count": 99, "instance_count": 99}
        for c in (1, 2, 3, 4)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, root


@pytest.fixture
def pool_root(write_pool) -> Path:
    return write_pool([{"category_id": 1 + i % 3} for i in range(6)])


def run(dataset, pool_root, out, *, config=PNG, recipe=RECIPE, n_workers=1, **options):
    lvis = load_lvis(dataset[0])
    paste = recipe.build(InstancePool.open(pool_root).match(lvis.categories), **options)
    return compose(
        lvis, dataset[1], paste, out,
        config=config, recipe=dataclasses.asdict(recipe), n_workers=n_workers,
    )  # fmt: skip


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_data_set_is_valid_lvis_and_agrees_with_its_masks(dataset, pool_root, tmp_path):
    out = tmp_path / "out"
    summary = run(dataset, pool_root, out, config=dataclasses.replace(PNG, copies_per_image=2))
    coco = COCO(out / "annotations.json")
    assert len(coco.imgs) == 12 == summary.n_images
    n_pasted = 0
    for entry in coco.dataset["annotations"]:
        mask = coco.annToMask(entry).astype(bool)
        rows, columns = np.nonzero(mask)
        left, top, width, height = entry["bbox"]
        assert entry["area"] == mask.sum() > 0
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
        assert (entry["instance_id"] is None) != (entry["source_annotation_id"] is None)
        n_pasted += entry["instance_id"] is not None
    assert n_pasted == summary.n_pasted > 12
    for image in coco.dataset["images"]:
        with Image.open(out / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])


def test_pixels_change_only_where_something_was_pasted(dataset, pool_root, tmp_path):
    run(dataset, pool_root, tmp_path / "out")
    coco = COCO(tmp_path / "out" / "annotations.json")
    for image in coco.dataset["images"]:
        source = np.asarray(Image.open(dataset[1] / f"{image['source_image_id'] - 70}.png"))
        now = np.asarray(Image.open(tmp_path / "out" / "images" / image["file_name"]))
        pasted = np.zeros(now.shape[:2], dtype=bool)
        for entry in coco.imgToAnns[image["id"]]:
            if entry["instance_id"] is not None:
                pasted |= coco.annToMask(entry).astype(bool)
        np.testing.assert_array_equal(now[~pasted], source[~pasted])
        assert (now[pasted] != source[pasted]).any()


def test_what_lvis_says_about_categories_stays_true(dataset, pool_root, tmp_path):
    run(dataset, pool_root, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    seen = set()
    for image in content["images"]:
        entries = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        pasted = {a["category_id"] for a in entries if a["instance_id"] is not None}
        seen |= pasted
        # 2 was known to be absent: now it is complete. 3 was unknown: now it is incomplete.
        assert (2 in image["neg_category_ids"]) == (2 not in pasted)
        assert 4 in image["neg_category_ids"]
        assert image["not_exhaustive_category_ids"] == ([1, 3] if 3 in pasted else [1])
    assert seen == {1, 2, 3}
    for category in content["categories"]:
        of_category = [a for a in content["annotations"] if a["category_id"] == category["id"]]
        assert category["instance_count"] == len(of_category)
        assert category["image_count"] == len({a["image_id"] for a in of_category})
        assert category["frequency"] == "r"


def test_the_number_of_workers_changes_nothing(dataset, pool_root, tmp_path):
    run(dataset, pool_root, tmp_path / "one", n_workers=1)
    run(dataset, pool_root, tmp_path / "three", n_workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_an_image_does_not_depend_on_the_others(dataset, pool_root, tmp_path):
    run(dataset, pool_root, tmp_path / "all")
    single = {**dataset[0], "images": dataset[0]["images"][3:4]}
    single["annotations"] = dataset[0]["annotations"][3:4]
    run((single, dataset[1]), pool_root, tmp_path / "single")
    name = "images/000000000073_0.png"
    assert contents(tmp_path / "single")[name] == contents(tmp_path / "all")[name]


def test_copies_and_seeds_differ(dataset, pool_root, tmp_path):
    run(dataset, pool_root, tmp_path / "a", config=dataclasses.replace(PNG, copies_per_image=2))
    run(dataset, pool_root, tmp_path / "b", config=dataclasses.replace(PNG, seed=1))
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    name = "images/000000000073_0.png"
    assert first[name] != second[name]
    assert first[name] != first["images/000000000073_1.png"]


@pytest.mark.parametrize("cut_bytes", [0, 1, 40])
def test_a_stopped_run_goes_on_to_the_same_bytes(dataset, pool_root, tmp_path, cut_bytes):
    run(dataset, pool_root, tmp_path / "whole")
    run(dataset, pool_root, tmp_path / "stopped")
    stopped = tmp_path / "stopped"
    (stopped / "annotations.json").unlink()
    manifest = stopped / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]) + lines[3][:cut_bytes])
    (stopped / "images" / "000000000074_0.png").unlink()
    (stopped / "images" / ".000000000074_0.png.77.tmp").write_bytes(b"half")
    run(dataset, pool_root, stopped)
    assert contents(stopped) == contents(tmp_path / "whole")


DAMAGES = {
    "deleted": lambda content: None,
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:-30] + bytes([content[-30] ^ 1]) + content[-29:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["images/000000000073_0.png", "annotations.json"])
def test_a_damaged_output_is_made_again(dataset, pool_root, tmp_path, caplog, damage, file):
    out = tmp_path / "out"
    run(dataset, pool_root, out)
    whole = contents(out)
    changed = DAMAGES[damage](whole[file])
    (out / file).unlink()
    if changed is not None:
        (out / file).write_bytes(changed)
    is_image = file.endswith(".png")
    for is_damaged in (True, False):
        caplog.clear()
        run(dataset, pool_root, out)
        again = contents(out)
        manifest = again.pop("manifest.jsonl")
        assert again == {name: whole[name] for name in again}
        assert again.keys() == whole.keys() - {"manifest.jsonl"}
        assert manifest.count(b"\n") == (7 if is_image else 6), "made once, not at every run"
        assert len(caplog.messages) == (is_image and is_damaged)


@pytest.mark.parametrize(("old", "new"), [(b'"area": 7', b'"area": 8'), (b'"ok"', b'"no"')])
def test_a_changed_row_is_made_again(dataset, pool_root, tmp_path, caplog, old, new):
    out = tmp_path / "out"
    run(dataset, pool_root, out)
    whole = contents(out)
    manifest = whole["manifest.jsonl"]
    assert old in manifest
    (out / "manifest.jsonl").write_bytes(manifest.replace(old, new, 1))
    run(dataset, pool_root, out)
    assert "1 images are missing or damaged and are made again" in caplog.text
    assert contents(out)["annotations.json"] == whole["annotations.json"]
    caplog.clear()
    run(dataset, pool_root, out)
    assert not caplog.messages


@pytest.mark.parametrize("content", [b"", b'{"schema"', b"[]", b'"x"', b"\xff"])
def test_a_damaged_meta_file_is_named(dataset, pool_root, tmp_path, content):
    run(dataset, pool_root, tmp_path / "out")
    (tmp_path / "out" / "meta.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.json"):
        run(dataset, pool_root, tmp_path / "out")
    (tmp_path / "out" / "meta.json").unlink()
    with pytest.raises(ValueError, match="is not empty and was not written by `compose`"):
        run(dataset, pool_root, tmp_path / "out")


def test_a_run_killed_before_its_first_row_is_gone_on_with(dataset, pool_root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").touch()
    (tmp_path / "out" / ".meta.json.7.tmp").write_bytes(b"{")
    assert run(dataset, pool_root, tmp_path / "out").n_images == 6


def test_a_second_writer_changes_nothing(dataset, pool_root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    # Where the first one is just before it writes meta.json.
    with ManifestAppender(out / "manifest.jsonl"):
        (out / ".meta.json.7.tmp").write_bytes(b"{")
        with pytest.raises(ValueError, match="is being written by another process"):
            run(dataset, pool_root, out)
    assert contents(out) == {"manifest.jsonl": b"", ".meta.json.7.tmp": b"{"}


def test_a_killed_run_goes_on_to_the_same_bytes(dataset, pool_root, tmp_path):
    annotations = tmp_path / "a.json"
    annotations.write_text(json.dumps(dataset[0]))

    def arguments(out: str) -> list[str]:
        return [
            "compose", "--pool", str(pool_root), "--annotations", str(annotations),
            "--image-root", str(dataset[1]), "--out", str(tmp_path / out), "--n-workers", "2",
            "--copies-per-image", "30", "--image-format", "png", "--scale-range", "0.2", "0.5",
        ]  # fmt: skip

    assert cli.main(arguments("whole")) == 0
    manifest = tmp_path / "killed" / "manifest.jsonl"
    # Somewhere else each time the test is run: the moment is what must not matter.
    rng = np.random.default_rng()
    for n_rows in sorted(rng.integers(1, 120, size=3).tolist()):
        process = subprocess.Popen(
            [sys.executable, "-m", "bsgal_paste.cli", *arguments("killed")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while not manifest.exists() or manifest.read_bytes().count(b"\n") < n_rows:
            assert process.poll() is None, "the run was over before it could be killed"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.01))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "annotations.json").exists()
    assert cli.main(arguments("killed")) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_instances_are_copied_between_the_images_and_say_from_where(dataset, tmp_path):
    recipe = PRESETS["simple_copy_paste"]
    lvis = load_lvis(dataset[0])
    paste = recipe.build(donors=LvisDonors(lvis.raw, dataset[1]))
    config = dataclasses.replace(PNG, copies_per_image=3)
    out = tmp_path / "out"
    summary = compose(
        lvis, dataset[1], paste, out, config=config, recipe=dataclasses.asdict(recipe), n_workers=2
    )
    assert summary.n_pasted > 3
    entries = json.loads((out / "annotations.json").read_text())["annotations"]
    copies = [entry for entry in entries if entry["origin"] == "self"]
    assert len(copies) == summary.n_pasted
    assert {entry["instance_id"] for entry in copies} <= {f"annotation-{500 + i}" for i in range(6)}
    assert {entry["source_annotation_id"] for entry in copies} == {None}


def test_annotations_without_masks_stay_without(dataset, pool_root, tmp_path):
    for annotation in dataset[0]["annotations"]:
        del annotation["segmentation"]
    summary = run(dataset, pool_root, tmp_path / "out")
    assert summary.n_images == 6
    assert summary.n_pasted > 6
    entries = json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"]
    assert not any("segmentation" in entry for entry in entries)
    assert {entry["origin"] for entry in entries} == {"real", "pool"}


def test_a_crowd_stays_a_crowd_and_no_object(dataset, pool_root, tmp_path):
    dataset[0]["annotations"][2]["iscrowd"] = 1
    run(dataset, pool_root, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    crowds = [entry for entry in content["annotations"] if entry["iscrowd"]]
    assert [entry["source_annotation_id"] for entry in crowds] == [502]
    of_category = [entry for entry in content["annotations"] if entry["category_id"] == 1]
    counted = next(category for category in content["categories"] if category["id"] == 1)
    assert counted["instance_count"] == len(of_category) - 1


def test_the_category_of_a_crowd_is_not_exhaustive(dataset, pool_root, tmp_path):
    for image in dataset[0]["images"]:
        image["not_exhaustive_category_ids"] = []
    dataset[0]["annotations"][2]["iscrowd"] = 1
    run(dataset, pool_root, tmp_path / "out")
    images = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    incomplete = [1 in image["not_exhaustive_category_ids"] for image in images]
    assert incomplete == [False, False, True, False, False, False]


def test_annotations_without_a_pixel_are_counted(dataset, pool_root, tmp_path):
    dataset[0]["annotations"][1]["segmentation"] = [[70, 5, 80, 5, 80, 20]]
    summary = run(dataset, pool_root, tmp_path / "out")
    assert summary.n_without_pixel == 1


def test_polygons_describe_the_same_masks(dataset, pool_root, tmp_path):
    config = dataclasses.replace(PNG, segmentation="rle")
    run(dataset, pool_root, tmp_path / "rle", config=config)
    run(dataset, pool_root, tmp_path / "polygon")
    rle, polygon = (COCO(tmp_path / name / "annotations.json") for name in ("rle", "polygon"))
    assert len(rle.anns) == len(polygon.anns) > 12
    for key, entry in polygon.anns.items():
        assert all(len(points) >= 6 for points in entry["segmentation"])
        mask = rle.annToMask(rle.anns[key])
        np.testing.assert_array_equal(polygon.annToMask(entry), mask)
        assert entry["area"] == mask.sum()


def test_a_damaged_photograph_is_left_out_named_and_tried_again(dataset, pool_root, tmp_path):
    good = (dataset[1] / "2.png").read_bytes()
    (dataset[1] / "2.png").write_bytes(good[:50])
    (dataset[1] / "4.png").rename(tmp_path / "4.png")
    summary = run(dataset, pool_root, tmp_path / "out")
    assert summary.n_images == 4
    assert "image 72: cannot decode" in summary.failed[0]
    assert "image 74 is not at" in summary.failed[1]
    (dataset[1] / "2.png").write_bytes(good)
    assert run(dataset, pool_root, tmp_path / "out").n_images == 5


def test_unreadable_instances_are_named(dataset, pool_root, tmp_path):
    (pool_root / "instances/1/i003.png").write_bytes(b"")
    summary = run(dataset, pool_root, tmp_path / "out", on_corrupt="skip")
    assert summary.corrupt_instances == ("i003",)


def test_another_run_or_a_foreign_folder_is_not_overwritten(dataset, pool_root, tmp_path):
    run(dataset, pool_root, tmp_path / "out")
    with pytest.raises(ValueError, match=r"output of another run \(config in meta.json"):
        run(dataset, pool_root, tmp_path / "out", config=dataclasses.replace(PNG, seed=5))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and was not written by"):
        run(dataset, pool_root, tmp_path / "home")


@pytest.mark.parametrize(
    "setting",
    [
        {"copies_per_image": 0},
        {"seed": -1},
        {"image_format": "gif"},
        {"jpeg_quality": 0},
        {"segmentation": "mask"},
    ],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must"):
        ComposeConfig(**setting)
