from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_paste import cli
from bsgal_paste._lvis import load_lvis, read_annotated_image
from bsgal_paste._settings_file import field_docs, read_settings, write_settings
from bsgal_paste.config import PRESETS, Settings


@pytest.fixture
def photo_arguments(coco_mini: Path, tmp_path: Path) -> list[str]:
    """Options for the validation photographs, and a pool of objects cut from training ones."""
    lvis = load_lvis(coco_mini / "lvis_train.json")
    annotations = lvis.annotations_by_image()
    names = {category["id"]: category["name"] for category in lvis.categories}
    root = tmp_path / "pool"
    rows = []
    for entry in lvis.images[:15]:
        image, _ = read_annotated_image(
            entry, annotations[entry["id"]], coco_mini / "images" / "train"
        )
        for i, mask in enumerate(image.masks):
            left, top, right, bottom = image.boxes_xyxy[i].astype(int)
            window = slice(top, bottom), slice(left, right)
            if mask.sum() < 900:
                continue
            category_id = int(image.category_ids[i])
            instance_id = f"{entry['id']}_{i}"
            file = f"instances/{category_id}/{instance_id}.png"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            rgba = np.dstack([image.image[window], mask[window] * np.uint8(255)])
            Image.fromarray(rgba).save(root / file)
            rows.append(
                {"instance_id": instance_id, "category_id": category_id, "file": file,
                 "category_name": names[category_id], "status": "kept"}
            )  # fmt: skip
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "meta.json").write_text('{"schema": "bsgal.instance_pool/1"}')
    return [
        "--pool", str(root), "--annotations", str(coco_mini / "lvis_val.json"),
        "--image-root", str(coco_mini / "images" / "val"),
        "--statistics", str(coco_mini / "lvis_train.json"),
    ]  # fmt: skip


def test_preview_draws_a_sheet_of_real_photographs(photo_arguments, tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    options = ["--out", str(out), "--n-images", "5", "--n-columns", "3", "--tile-px", "200"]
    assert cli.main(["preview", *photo_arguments, *options, "--count-range", "3", "6"]) == 0
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 206 + 6, 2 * 206 + 6)
        orange = (np.abs(np.asarray(sheet).astype(int) - (255, 140, 0)) < 8).all(axis=-1)
    assert orange.sum() > 500
    assert "5 images" in capsys.readouterr().out


def test_compose_writes_real_photographs(photo_arguments, tmp_path, capsys):
    out = tmp_path / "composed"
    assert cli.main(["compose", *photo_arguments, "--out", str(out), "--preset", "xpaste"]) == 0
    content = json.loads((out / "annotations.json").read_text())
    assert len(content["images"]) == 30
    assert sum(a["instance_id"] is not None for a in content["annotations"]) > 30
    assert "30 images" in capsys.readouterr().out
    meta = json.loads((out / "meta.json").read_text())
    assert meta["config"]["paste"]["visibility"] == "official"


def test_a_dry_run_writes_nothing(photo_arguments, tmp_path, capsys):
    out = tmp_path / "composed"
    assert cli.main(["compose", *photo_arguments, "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()
    assert "30 images" in capsys.readouterr().out


def test_objects_are_copied_between_real_photographs(coco_mini, tmp_path, capsys):
    arguments = [
        "--annotations", str(coco_mini / "lvis_val.json"),
        "--image-root", str(coco_mini / "images" / "val"), "--preset", "simple_copy_paste",
        "--out", str(tmp_path / "sheet.png"), "--n-images", "6", "--tile-px", "100",
    ]  # fmt: skip
    assert cli.main(["preview", *arguments]) == 0
    assert " 0 pasted" not in capsys.readouterr().out
    assert cli.main(["preview", *arguments, "--pool", "p"]) == 1
    assert "the source is self, which takes no --pool" in capsys.readouterr().err
    assert cli.main(["preview", *arguments, "--source", "both"]) == 1
    assert "the source is both, which needs --pool" in capsys.readouterr().err


def test_a_run_that_pastes_nothing_says_so(photo_arguments, tmp_path, capsys):
    out = ["--out", str(tmp_path / "composed"), "--count-range", "0", "1"]
    assert cli.main(["compose", *photo_arguments, *out]) == 0
    assert "nothing was pasted" in capsys.readouterr().err


def test_compose_fails_where_every_image_is_left_out(photo_arguments, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    photo_arguments[photo_arguments.index("--image-root") + 1] = str(tmp_path / "empty")
    out = tmp_path / "composed"
    assert cli.main(["compose", *photo_arguments, "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bsgal-paste: none of the ")
    assert str(tmp_path / "empty") in last


def test_card_prints_json(write_pool, capsys):
    assert cli.main(["card", str(write_pool([{}, {"category_id": 4}]))]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"1": 1, "4": 1}


def test_a_pool_may_be_a_folder_an_x_paste_index_or_annotations(coco_mini, tmp_path, disc, capsys):
    images = tmp_path / "cut" / "person"
    images.mkdir(parents=True)
    Image.fromarray(disc(60, 40, (200, 30, 30))).save(images / "a.png")
    annotations = str(coco_mini / "lvis_val.json")
    index = tmp_path / "index.json"
    pool = ["--pool", str(tmp_path / "cut"), "--annotations", annotations]
    assert cli.main(["export-xpaste", *pool, "--out", str(index)]) == 0
    assert "1 instances of 1 categories" in capsys.readouterr().out
    for options in (
        [str(tmp_path / "cut")],
        [str(index)],
        [annotations, "--pool-image-root", str(coco_mini / "images" / "val")],
    ):
        assert cli.main(["card", *options, "--annotations", annotations]) == 0
        card = json.loads(capsys.readouterr().out)
        assert "person" in card["category_names"].values()
        assert card["n_kept"] >= 1
        preview = ["preview", "--pool", *options, "--annotations", annotations]
        preview += ["--image-root", str(coco_mini / "images" / "val"), "--n-images", "2"]
        assert cli.main([*preview, "--out", str(tmp_path / "s.png"), "--tile-px", "64"]) == 0
        assert "2 images" in capsys.readouterr().out
    assert cli.main(["card", str(index)]) == 1
    assert "a JSON pool needs --annotations" in capsys.readouterr().err


def test_a_failure_is_one_readable_line(tmp_path, capsys):
    assert cli.main(["card", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bsgal-paste: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["compose"], ["card", "x", "--colour", "red"]])
def test_bad_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_flags_keys_and_fields_agree(tmp_path):
    places = set()
    for table in dataclasses.fields(Settings):
        part = getattr(Settings(), table.name)
        names = [inner.name for inner in dataclasses.fields(part)]
        assert list(field_docs(type(part))) == names
        places |= {f"{table.name}.{name}" for name in names}
    assert set((cli.PASTE_FLAGS | cli.COMPOSE_FLAGS).values()) <= places
    for preset in PRESETS.values():
        settings = Settings(paste=dataclasses.replace(preset, scale_range=(0.125, 0.5)))
        file = tmp_path / f"{preset.source}-{preset.visibility}.toml"
        write_settings(file, settings)
        assert read_settings(file, Settings()) == settings


def test_a_folder_goes_on_with_the_file_that_its_flags_wrote(photo_arguments, tmp_path, capsys):
    file, out = str(tmp_path / "paste.toml"), ["--out", str(tmp_path / "composed")]
    flags = ["--preset", "xpaste", "--seed", "3", "--count-range", "1", "3"]
    assert cli.main(["compose", *flags, "--write-config", file]) == 0
    assert cli.main(["compose", *photo_arguments, *out, *flags]) == 0
    meta = (tmp_path / "composed" / "meta.json").read_bytes()
    assert cli.main(["compose", *photo_arguments, *out, "--config", file]) == 0
    assert (tmp_path / "composed" / "meta.json").read_bytes() == meta
    other = ["--config", file, "--seed", "4"]
    assert cli.main(["compose", *photo_arguments, *out, *other]) == 1
    assert "output of another run" in capsys.readouterr().err


def test_a_file_of_a_few_settings_leaves_the_preset_the_others(photo_arguments, tmp_path):
    (tmp_path / "paste.toml").write_text("[paste]\nmin_side_px = 7\ncolour_prob = 1\n")
    arguments = [*photo_arguments, "--out", str(tmp_path / "composed"), "--preset", "xpaste"]
    assert cli.main(["compose", *arguments, "--config", str(tmp_path / "paste.toml")]) == 0
    recorded = json.loads((tmp_path / "composed" / "meta.json").read_text())["config"]["paste"]
    found = [recorded[name] for name in ("visibility", "min_side_px", "colour_prob")]
    assert found == ["official", 7, 1.0]


def test_a_wrong_settings_file_is_bad_usage_in_one_line(photo_arguments, tmp_path, capsys):
    (tmp_path / "paste.toml").write_text("[paste]\ncount_range = [1, 2.5]\n")
    arguments = [*photo_arguments, "--out", str(tmp_path / "out.png")]
    assert cli.main(["preview", *arguments, "--config", str(tmp_path / "paste.toml")]) == 2
    error = capsys.readouterr().err
    assert "[paste] count_range must be a list of 2 (a whole number), got [1, 2.5]" in error
    assert error.count("\n") == 1
