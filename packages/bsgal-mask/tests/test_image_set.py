from __future__ import annotations

import json

import pytest

from bsgal_mask import ImageError, ImageSet, ImageSetError, build_pool, summarise_pool

MAX_PX = 10**6


def append(root, **changes):
    row = json.loads((root / "manifest.jsonl").read_text().splitlines()[0]) | changes
    with (root / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(row) + "\n")


def test_rows_come_in_the_manifests_order_and_the_last_of_an_id_counts(make_image_set, drawn):
    root = make_image_set({"b": "failed", "a": drawn("disc")[0]})
    append(root, sample_id="b", status="blank")
    rows = ImageSet.open(root).rows
    assert [(row.sample_id, row.status) for row in rows] == [("b", "blank"), ("a", "ok")]


def test_an_image_reads_as_it_was_written(make_image_set, drawn):
    image, _ = drawn("disc")
    image_set = ImageSet.open(make_image_set({"a": image}))
    assert (image_set.read(image_set.rows[0], max_image_px=MAX_PX) == image).all()


def test_a_torn_last_line_is_left_out(make_image_set, drawn):
    root = make_image_set({"a": drawn("disc")[0]})
    with (root / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"sample_id": "b", "categ')
    assert [row.sample_id for row in ImageSet.open(root).rows] == ["a"]


def test_a_last_line_that_lacks_only_its_line_end_counts(make_image_set, drawn):
    root = make_image_set({"a": drawn("disc")[0], "b": "blank"})
    text = (root / "manifest.jsonl").read_text()
    (root / "manifest.jsonl").write_text(text.rstrip("\n"))
    assert len(ImageSet.open(root).rows) == 2


def test_damage_elsewhere_names_the_line(make_image_set):
    root = make_image_set({"a": "blank"})
    with (root / "manifest.jsonl").open("a") as manifest:
        manifest.write("{]\n[]\n")
    with pytest.raises(ImageSetError, match=r"manifest\.jsonl, line 2: not JSON"):
        ImageSet.open(root)


@pytest.mark.parametrize("missing", ["meta.json", "manifest.jsonl"])
def test_a_folder_that_is_no_image_set_is_refused(make_image_set, missing):
    root = make_image_set({"a": "blank"})
    (root / missing).unlink()
    with pytest.raises(ImageSetError, match=f"not an image set: it has no {missing}"):
        ImageSet.open(root)


@pytest.mark.parametrize("meta", ['{"schema": "bsgal.image_set/2"}', "{}", "[]", "{"])
def test_another_schema_is_refused(make_image_set, meta):
    root = make_image_set({"a": "blank"})
    (root / "meta.json").write_text(meta)
    with pytest.raises(
        ImageSetError, match=r"schema must be 'bsgal\.image_set/1'|not JSON|a JSON object"
    ):
        ImageSet.open(root)


@pytest.mark.parametrize(
    "file",
    ["../secret.png", "/etc/passwd", "images/../../x.png", "C:\\x.png", "", "images//..//../x.png"],
)
def test_a_path_that_leaves_the_folder_is_refused_before_any_work(make_image_set, file):
    root = make_image_set({"a": "blank"})
    append(root, sample_id="b", status="ok", file=file)
    with pytest.raises(ImageSetError, match=r"line 2: 'file' must be a plain path inside"):
        ImageSet.open(root)


def test_a_symbolic_link_out_of_the_folder_is_not_followed(make_image_set, drawn, tmp_path):
    root = make_image_set({"a": drawn("disc")[0]})
    image_set = ImageSet.open(root)
    file = root / image_set.rows[0].file
    file.rename(tmp_path / "outside.png")
    file.symlink_to(tmp_path / "outside.png")
    with pytest.raises(ImageError, match="symbolic link leads out"):
        image_set.read(image_set.rows[0], max_image_px=MAX_PX)


@pytest.mark.parametrize("sample_id", ["../a", "a/b", "", ".hidden", "a\n", "x" * 201, "con?"])
def test_an_id_that_is_no_file_name_is_refused(make_image_set, sample_id):
    root = make_image_set({"a": "blank"})
    append(root, sample_id=sample_id)
    with pytest.raises(ImageSetError, match=r"'sample_id' must be text that can be a file name"):
        ImageSet.open(root)


@pytest.mark.parametrize(
    ("field", "value"),
    [("category_id", "7"), ("category_id", True), ("category_id", -1), ("sample_id", 3),
     ("category_name", None), ("prompt", 1), ("status", None), ("file", 4)],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_named(make_image_set, field, value):
    root = make_image_set({"a": "blank"})
    append(root, **{field: value})
    with pytest.raises(ImageSetError, match=f"line 2: '{field}'"):
        ImageSet.open(root)


@pytest.mark.parametrize("marks", [{"category_id": 0, "category_name": "scene"}, {"kind": "scene"}])
def test_a_scene_is_refused_as_it_shows_no_object(make_image_set, marks):
    root = make_image_set({"a": "failed"})
    append(root, sample_id="background", **marks)
    with pytest.raises(ImageSetError, match="line 2: this is a scene"):
        ImageSet.open(root)


@pytest.mark.parametrize(
    "marks",
    [
        {"category_id": 0},
        {"category_id": 0, "category_name": "scene", "kind": "object"},
        {"category_id": 3, "category_name": "scene"},
    ],
)
def test_category_id_0_is_one_like_any_other(make_image_set, make_stub, drawn, tmp_path, marks):
    root = make_image_set({"a": drawn("disc")[0]})
    append(root, **marks)
    summary = build_pool(root, tmp_path / "pool", methods=[make_stub()])
    assert summary.n_kept == 1
    assert summary == summarise_pool(tmp_path / "pool")
    assert (tmp_path / f"pool/instances/{marks['category_id']}/a.png").is_file()


def test_a_category_id_with_two_names_is_refused(make_image_set):
    root = make_image_set({"a": "blank"})
    append(root, sample_id="b", category_name="ball")
    with pytest.raises(
        ImageSetError, match=r"category 7 is 'ball_\(toy\)', but 'ball' in sample b"
    ):
        ImageSet.open(root)
    append(root, sample_id="b")
    assert len(ImageSet.open(root).rows) == 2


def test_a_changed_file_is_noticed_by_its_hash(make_image_set, drawn):
    image_set = ImageSet.open(make_image_set({"a": drawn("disc")[0], "b": drawn("ring")[0]}))
    a, b = (image_set.root / row.file for row in image_set.rows)
    a.write_bytes(b.read_bytes())
    with pytest.raises(ImageError, match="SHA-256 differs"):
        image_set.read(image_set.rows[0], max_image_px=MAX_PX)


@pytest.mark.parametrize(("side", "length"), [("height", 1), ("width", 95)])
def test_without_a_hash_a_changed_file_is_noticed_by_its_size(make_image_set, drawn, side, length):
    root = make_image_set({"a": drawn("disc")[0]})
    sides = {"height": 96, "width": 96}
    append(root, sha256=None, **sides)
    (row,) = (image_set := ImageSet.open(root)).rows
    assert image_set.read(row, max_image_px=MAX_PX).shape == (96, 96, 3)
    append(root, sha256=None, **(sides | {side: length}))
    (row,) = (image_set := ImageSet.open(root)).rows
    with pytest.raises(ImageError, match=f"{side} 96 px, the manifest says {length} px"):
        image_set.read(row, max_image_px=MAX_PX)
