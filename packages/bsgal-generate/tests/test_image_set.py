from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_generate import ImageRow, ImageSet
from bsgal_generate._image_set import ImageSetWriter
from bsgal_generate._images import encode_png
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


def test_alpha_is_kept(tmp_path: Path) -> None:
    image = np.arange(4 * 5 * 4, dtype=np.uint8).reshape(4, 5, 4)
    with ImageSetWriter(tmp_path, META) as writer:
        writer.add(ROW, encode_png(image))
    image_set = ImageSet.open(tmp_path)
    np.testing.assert_array_equal(image_set.read_image(image_set.rows[0]), image)


def test_image_of_another_size_than_the_row_says_is_refused(tmp_path: Path) -> None:
    with ImageSetWriter(tmp_path, META) as writer:
        writer.add(ROW, encode_png(IMAGE[:1, :1]))
    image_set = ImageSet.open(tmp_path)
    with pytest.raises(ImageSetError, match="1 x 1 pixels, and the manifest says 5 x 4"):
        image_set.read_image(image_set.rows[0])


def test_sixteen_bit_image_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(stream, "PNG")
    with ImageSetWriter(tmp_path, META) as writer:
        writer.add(ROW, stream.getvalue())
    image_set = ImageSet.open(tmp_path)
    with pytest.raises(ImageSetError, match=r"colour mode I(;16)?, not 8 bits per channel"):
        image_set.read_image(image_set.rows[0])


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
    for torn in (b'{"sample_id": "3-si', whole.splitlines()[-1][:-1], b"12", b"\0\0\0"):
        manifest.write_bytes(whole + torn)
        assert len(ImageSet.open(root)) == 2
        assert manifest.read_bytes() == whole + torn
        with ImageSetWriter(root, META):
            pass
        assert manifest.read_bytes() == whole


def test_last_line_that_lacks_its_end_alone_counts_and_is_completed(root: Path) -> None:
    manifest = root / "manifest.jsonl"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-1])
    assert len(ImageSet.open(root)) == 2
    assert manifest.read_bytes() == whole[:-1]
    with ImageSetWriter(root, META):
        pass
    assert manifest.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: b"\xef\xbb\xbf" + whole, "line 1: it begins with a byte order mark"),
        (lambda whole: whole.replace(b"status", b"st\0tus"), "line 1: not valid JSON"),
        (lambda whole: whole.replace(b"caf", b"ca\xff"), "line 1: not valid JSON"),
        (lambda whole: whole.decode().encode("utf-16"), "line 1: not valid JSON"),
        (lambda whole: b"[" * 5000 + b"\n" + whole, "line 1: not valid JSON: it nests"),
        (lambda whole: whole.replace(b"3.0", b"NaN"), "line 1: not valid JSON: NaN is no JSON"),
        (lambda whole: whole.replace(b"3.0", b"1e999"), "`guidance_scale` must be a finite number"),
        (lambda whole: b"\n" + whole, "line 1: not valid JSON"),
    ],
    ids=["bom", "nul", "no-utf8", "utf16", "nested", "nan", "inf", "empty-line"],
)
def test_manifest_in_another_encoding_is_refused(
    damage: Callable[[bytes], bytes], message: str, root: Path
) -> None:
    manifest = root / "manifest.jsonl"
    manifest.write_bytes(damage(manifest.read_bytes()))
    with pytest.raises(ImageSetError, match=message):
        ImageSet.open(root)


def test_empty_manifest_is_a_set_of_no_rows_and_a_missing_one_an_error(root: Path) -> None:
    (root / "manifest.jsonl").write_bytes(b"")
    assert len(ImageSet.open(root)) == 0
    (root / "manifest.jsonl").unlink()
    with pytest.raises(ImageSetError, match=r"manifest\.jsonl cannot be read"):
        ImageSet.open(root)


def test_rows_without_their_meta_are_not_continued(root: Path) -> None:
    (root / "meta.json").unlink()
    with pytest.raises(ImageSetError, match=r"has a manifest\.jsonl but no meta\.json"):
        ImageSetWriter(root, META)
    assert not (root / "meta.json").exists()


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
        ('{"sample_id": "a"}', r"line 3: it lacks 'category_id'"),
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
        ({"status": 3}, "`status` must be one of"),
        ({"sample_id": 7}, "`sample_id` must be text that can name a file, got 7"),
        ({"sample_id": "a/b"}, "`sample_id` must be text that can name a file"),
        ({"sample_id": "a\ud800"}, "`sample_id` must be text that can name a file"),
        ({"category_id": "3"}, "`category_id` must be an int from 0 to 2"),
        ({"category_id": True}, "`category_id` must be an int from 0 to 2"),
        ({"category_id": 2**70}, "`category_id` must be an int from 0 to 2"),
        ({"category_id": -1}, "`category_id` must be an int from 0 to 2"),
        ({"category_name": ["a"]}, "`category_name` must be a line of text that is not empty"),
        ({"category_name": "tea"}, "`category_name` of category 3 must be 'café' as in an earlier"),
        ({"kind": "thing"}, "`kind` must be one of"),
        ({"prompt": None}, "`prompt` must be text"),
        ({"negative_prompt": 1}, "`negative_prompt` must be text without NULs, or be null, got 1"),
        ({"seed": 0.5}, "`seed` must be an int"),
        ({"attempt": -1}, "`attempt` must be an int"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be an int of at least 1, got 0"),
        ({"guidance_scale": "3"}, "`guidance_scale` must be a finite number, or be null, got '3'"),
        ({"height": 1.5}, "`height` must be an int of at least 1"),
        ({"sha256": "ab"}, "`sha256` must be 64 hexadecimal digits"),
        ({"sha256": None}, "a row with a `file` must have its `sha256`"),
        ({"file": None}, "a row whose `status` is 'ok' must have a `file`"),
        ({"file": "a\0b"}, "must stay inside the set"),
        ({"file": ["a"]}, "must stay inside the set, .*, got a JSON list of length 1"),
        ({"reason": {}}, "`reason` must be text"),
        ({"file": "../../etc/passwd"}, "must stay inside the set"),
        ({"file": "/etc/passwd"}, "must stay inside the set"),
        ({"file": "a\\..\\..\\b.png"}, "must stay inside the set"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, object], message: str, root: Path) -> None:
    manifest = root / "manifest.jsonl"
    row = json.loads(manifest.read_text().splitlines()[0])
    with manifest.open("a") as lines:
        lines.write(json.dumps(row | change) + "\n")
    with pytest.raises(ImageSetError, match=message) as caught:
        ImageSet.open(root)
    assert str(manifest) in str(caught.value)
    assert "line 3" in str(caught.value)


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


PIPELINE = {"class": "P", "dtype": "float32", "scheduler": {"class": "S", "beta": 1, "old": 2}}
SETTINGS = {
    "plan": {
        "seed": 0,
        "images_per_category": {"3": 2},
        "negative_prompt": None,
        "categories": {"3": {"name": "café", "prompts": {"single": "a café"}}},
    },
    "sampling": {
        "num_inference_steps": 2, "guidance_scale": 3.0, "height": None, "width": None,
        "max_redraws": 2, "blank_std": 1.0,
    },
    "pipeline": PIPELINE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("config", 3, "`config` must be a JSON object, got 3"),
        ("config.plan.seed", "0", "`config.plan.seed` must be an int, got '0'"),
        ("config.plan.images_per_category", 0, "must be an int of at least 1, or an object"),
        ("config.plan.images_per_category", {"3": -1}, "`config.plan.images_per_category` must"),
        ("config.plan.images_per_category", {"x": 1}, "`config.plan.images_per_category` must"),
        ("config.plan.categories", {"3": {}}, "must be an object of name and prompts"),
        ("config.plan.categories", [1], "must be an object of name and prompts"),
        ("config.sampling.blank_std", None, "`config.sampling.blank_std` must be a finite number"),
        ("config.sampling.height", 2.0, "`config.sampling.height` must be an int of at least 1"),
        ("config.pipeline.dtype", 16, "`config.pipeline.dtype` must be a line of text"),
        ("config.pipeline.scheduler", [], "`config.pipeline.scheduler` must be a JSON object"),
        ("model.weight_hash", None, "`model.weight_hash` must be a line of text"),
        ("model.id", ["m"], "`model.id` must be text"),
        ("versions", 1, "`versions` must be a JSON object"),
    ],
)
def test_meta_of_another_form_is_refused(
    path: str, value: object, message: str, tmp_path: Path
) -> None:
    with ImageSetWriter(tmp_path, META | {"config": SETTINGS}):
        pass
    meta_path = tmp_path / "meta.json"
    meta = json.loads(meta_path.read_text())
    *outer, last = path.split(".")
    place = meta
    for key in outer:
        place = place[key]
    place[last] = value
    meta_path.write_text(json.dumps(meta))
    with pytest.raises(ImageSetError, match=message) as caught:
        ImageSet.open(tmp_path)
    assert str(meta_path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf{}", b"[" * 5000, b'{"schema": NaN}', b"\xff", b""]
)
def test_meta_that_is_no_json_is_refused(content: bytes, root: Path) -> None:
    (root / "meta.json").write_bytes(content)
    with pytest.raises(ImageSetError, match=r"meta\.json cannot be read"):
        ImageSet.open(root)


def test_meta_that_nests_deeply_is_refused(root: Path) -> None:
    deep = "[" * 40 + "]" * 40
    (root / "meta.json").write_text(f'{{"schema": "bsgal.image_set/1", "config": {{"a": {deep}}}}}')
    with pytest.raises(ImageSetError, match="nests too deeply"):
        ImageSet.open(root)


def test_scheduler_settings_that_one_library_lacks_are_told_and_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upscaler = {"class": "U", "dtype": "float32", "scheduler": {"class": "S"}}
    before = {"pipeline": PIPELINE | {"upscaler": upscaler}}
    with ImageSetWriter(tmp_path, META | {"config": before}):
        pass
    scheduler = {"class": "S", "beta": 1, "new": "x"}
    now = {
        "pipeline": PIPELINE
        | {"scheduler": scheduler, "upscaler": upscaler | {"scheduler": {"class": "S", "new": 1}}}
    }
    with ImageSetWriter(tmp_path, META | {"config": now}):
        pass
    assert caplog.messages == [
        f"{tmp_path} was begun with other libraries; scheduler settings that only the old or the "
        "new ones name were not compared: config.pipeline.scheduler.new, "
        "config.pipeline.scheduler.old, config.pipeline.upscaler.scheduler.new"
    ]
    changed = {"pipeline": now["pipeline"] | {"scheduler": scheduler | {"beta": 2}}}
    with pytest.raises(ConfigChangedError, match=r"scheduler\.beta was 1 and is now 2"):
        ImageSetWriter(tmp_path, META | {"config": changed})
    more = {"pipeline": now["pipeline"], "sampling": SETTINGS["sampling"]}
    with pytest.raises(ConfigChangedError, match=r"config\.sampling was missing and is now"):
        ImageSetWriter(tmp_path, META | {"config": more})


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
