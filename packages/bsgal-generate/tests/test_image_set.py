from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsgal_generate import ImageRow, ImageSet
from bsgal_generate._drawn import encode_png
from bsgal_generate._image_set import ImageSetWriter
from bsgal_generate._meta import first_difference
from bsgal_generate.errors import ConfigChangedError, ImageSetError

META = {"config": {"seed": 0}, "model": {"id": "m", "weight_hash": "h"}, "versions": {}}
IMAGE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
ROW = ImageRow(
    sample_id="3-single-00000",
    category_id=3,
    category_name="café",
    prompt_id="single",
    prompt="a café",
    negative_prompt=None,
    seed=7,
    model="m",
    scheduler="DDIMScheduler",
    num_inference_steps=2,
    guidance_scale=3.0,
    height=4,
    width=5,
    file=None,
    sha256=None,
    status="ok",
    reason=None,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set of one good and one blank sample."""
    with ImageSetWriter(tmp_path / "set", META) as writer:
        writer.add(ROW, encode_png(IMAGE))
        writer.add(replace(ROW, sample_id="3-single-00001", status="blank"), None)
    return tmp_path / "set"


def test_what_is_written_is_read_back(root: Path) -> None:
    image_set = ImageSet.open(root)
    assert image_set.meta["schema"] == "bsgal.image_set/1"
    good, blank = image_set
    assert good.file == "images/3/3-single-00000.png"
    assert good.category_name == "café"
    assert blank.file is None
    assert blank.sha256 is None
    assert blank.status == "blank"
    np.testing.assert_array_equal(image_set.read_image(good), IMAGE)
    assert image_set.has_file(good)
    assert not image_set.has_file(blank)
    with pytest.raises(ImageSetError, match="has no image: it is blank"):
        image_set.read_image(blank)


def test_no_temporary_files_are_left(root: Path) -> None:
    assert not list(root.rglob("*.partial"))


def test_image_beyond_the_limit_is_not_decoded(root: Path) -> None:
    image_set = ImageSet.open(root)
    assert image_set.read_image(image_set.rows[0], max_image_px=20).shape == (4, 5, 3)
    with pytest.raises(ImageSetError, match="has 5 x 4 pixels, more than the limit of 19"):
        image_set.read_image(image_set.rows[0], max_image_px=19)


def test_file_that_is_no_png_is_named_though_its_hash_is_right(tmp_path: Path) -> None:
    with ImageSetWriter(tmp_path, META) as writer:
        writer.add(ROW, b"GIF89a")
    image_set = ImageSet.open(tmp_path)
    with pytest.raises(ImageSetError, match=r"sample 3-single-00000: .*00000\.png is no PNG"):
        image_set.read_image(image_set.rows[0])


def test_link_out_of_the_set_is_not_followed(root: Path, tmp_path: Path) -> None:
    image_set = ImageSet.open(root)
    file = root / str(image_set.rows[0].file)
    outside = file.rename(tmp_path / "outside.png")
    file.symlink_to(outside)
    with pytest.raises(ImageSetError, match="is a link out of the set's folder"):
        image_set.read_image(image_set.rows[0])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such lock on Windows")
def test_second_writer_is_refused_until_the_first_is_done(root: Path) -> None:
    with ImageSetWriter(root, META):
        with pytest.raises(ImageSetError, match=r"another run is writing to .*manifest\.jsonl"):
            ImageSetWriter(root, META)
        assert len(ImageSet.open(root)) == 2
    with ImageSetWriter(root, META):
        pass


def test_last_row_of_a_sample_counts(root: Path) -> None:
    with ImageSetWriter(root, META) as writer:
        writer.add(replace(ROW, seed=8, attempt=1), encode_png(IMAGE))
    image_set = ImageSet.open(root)
    assert [row.seed for row in image_set] == [8, 7]
    assert len(image_set) == 2
    assert len(image_set.attempts) == 3


def test_torn_last_line_is_dropped_on_reading_and_cut_before_appending(root: Path) -> None:
    manifest = root / "manifest.jsonl"
    whole = manifest.read_bytes()
    for torn in (b'{"sample_id": "3-si', whole[:-1].splitlines()[-1]):
        manifest.write_bytes(whole + torn)
        assert len(ImageSet.open(root)) == 2
        with ImageSetWriter(root, META):
            pass
        assert manifest.read_bytes() == whole


def test_torn_first_line_leaves_an_empty_manifest(root: Path) -> None:
    manifest = root / "manifest.jsonl"
    manifest.write_bytes(b"x" * 100_000)
    with ImageSetWriter(root, META) as writer:
        writer.add(ROW, encode_png(IMAGE))
    assert len(ImageSet.open(root)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", r"manifest.jsonl, line 3: not valid JSON"),
        ("[1]", r"line 3: must be a JSON object"),
        ('{"sample_id": "a"}', r"line 3: the row lacks 'category_id'"),
    ],
)
def test_damaged_manifest_line_is_named(line: str, message: str, root: Path) -> None:
    with (root / "manifest.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ImageSetError, match=message):
        ImageSet.open(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "fine"}, "`status` must be one of"),
        ({"file": "../../etc/passwd"}, "must stay inside the set"),
        ({"file": "/etc/passwd"}, "must stay inside the set"),
        ({"file": "a\\..\\..\\b.png"}, "must stay inside the set"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, str], message: str, root: Path) -> None:
    manifest = root / "manifest.jsonl"
    row = json.loads(manifest.read_text().splitlines()[0])
    manifest.write_text(json.dumps(row | change) + "\n")
    with pytest.raises(ImageSetError, match=message):
        ImageSet.open(root)


def test_unknown_keys_of_a_row_are_left_out(root: Path) -> None:
    manifest = root / "manifest.jsonl"
    row = json.loads(manifest.read_text().splitlines()[0])
    manifest.write_text(json.dumps(row | {"colour": "red"}) + "\n")
    assert ImageSet.open(root).rows[0].sample_id == ROW.sample_id


def test_truncated_and_missing_images_are_detected(root: Path) -> None:
    image_set = ImageSet.open(root)
    row = image_set.rows[0]
    path = root / "images/3/3-single-00000.png"
    path.write_bytes(path.read_bytes()[:-20])
    assert not image_set.has_file(row)
    with pytest.raises(ImageSetError, match=r"3-single-00000: .* is damaged"):
        image_set.read_image(row)
    path.unlink()
    assert not image_set.has_file(row)
    with pytest.raises(ImageSetError, match="3-single-00000: cannot read"):
        image_set.read_image(row)


def test_folder_without_meta_or_of_another_schema_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"is not an image set: it has no meta.json"):
        ImageSet.open(tmp_path)
    (root / "meta.json").write_text('{"schema": "bsgal.image_set/2"}')
    with pytest.raises(ImageSetError, match=r"'bsgal.image_set/2'; this version reads"):
        ImageSet.open(root)
    with pytest.raises(ImageSetError, match=r"'bsgal.image_set/2'; this version reads"):
        ImageSetWriter(root, META)
    (root / "meta.json").write_text("{")
    with pytest.raises(ImageSetError, match="cannot be read"):
        ImageSet.open(root)


def test_other_config_is_refused_and_other_libraries_are_not(root: Path) -> None:
    with pytest.raises(ConfigChangedError, match=r"config.seed was 0 and is now 1"):
        ImageSetWriter(root, {**META, "config": {"seed": 1}})
    with pytest.raises(ConfigChangedError, match=r'model.weight_hash was "h" and is now "g"'):
        ImageSetWriter(root, {**META, "model": {"id": "m", "weight_hash": "g"}})
    moved = {"id": "elsewhere/m", "weight_hash": "h"}
    with ImageSetWriter(root, {**META, "model": moved, "versions": {"torch": "3"}}):
        pass
    assert ImageSet.open(root).meta["model"]["id"] == "m"


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageSetError, match="cannot write to"):
        ImageSetWriter(tmp_path / "file" / "set", META)


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b was 1 and is now 2"),
        ({"a": 1}, {}, "a was 1 and is now missing"),
        ({}, {"a": [1]}, "a was missing and is now [1]"),
        ({"a": {"b": 1}}, {"a": None}, 'a was {"b": 1} and is now null'),
    ],
)
def test_first_difference_names_the_place(old: object, new: object, difference: str | None) -> None:
    assert first_difference(old, new) == difference
