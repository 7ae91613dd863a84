from __future__ import annotations

import json

import pytest

from bsgal_mask import ImageSet, ImageSetError, PoolError, build_pool, summarise_pool

HUGE = 10**400


def ids_of_set(root):
    return [row.sample_id for row in ImageSet.open(root).rows]


def n_of_pool(root):
    summary = summarise_pool(root)
    return summary.n_kept + summary.n_dropped


@pytest.fixture
def images(make_image_set, drawn):
    return make_image_set({"a": drawn("disc")[0], "b": "blank"})


@pytest.fixture
def pool(images, make_stub, tmp_path):
    build_pool(images, tmp_path / "pool", methods=[make_stub()])
    return tmp_path / "pool"


@pytest.fixture(params=["image set", "pool"])
def folder(request, images, pool):
    """A folder with a manifest of two rows, its reader's count, and its error."""
    if request.param == "pool":
        return pool, n_of_pool, PoolError
    return images, lambda root: len(ids_of_set(root)), ImageSetError


TORN = [
    b'{"sample_id": "c", "categ', b"{", b"12", b"[]", b'"text"', b"\xff\xfe", b'{"a": "\xc3',
    b'{"a": NaN}', b"\xef\xbb\xbf{}", b"\0\0\0\0",
]  # fmt: skip


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_last_line_is_left_out_and_nothing_is_changed(folder, torn):
    root, count, _ = folder
    manifest = root / "manifest.jsonl"
    content = manifest.read_bytes() + torn
    manifest.write_bytes(content)
    assert count(root) == 2
    assert manifest.read_bytes() == content


@pytest.mark.parametrize("torn", TORN)
def test_a_writer_cuts_a_torn_line_off(images, pool, make_stub, torn):
    whole = (pool / "manifest.jsonl").read_bytes()
    (pool / "manifest.jsonl").write_bytes(whole + torn)
    build_pool(images, pool, methods=[make_stub()])
    assert (pool / "manifest.jsonl").read_bytes() == whole


def test_a_whole_last_row_counts_without_its_line_end_and_a_writer_adds_it(
    folder, images, pool, make_stub
):
    root, count, _ = folder
    whole = (root / "manifest.jsonl").read_bytes()
    (root / "manifest.jsonl").write_bytes(whole[:-1])
    assert count(root) == 2
    assert (root / "manifest.jsonl").read_bytes() == whole[:-1]
    build_pool(images, pool, methods=[make_stub()])
    assert (pool / "manifest.jsonl").read_bytes()[-1:] == b"\n"
    assert n_of_pool(pool) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{]", "not JSON"),
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": %d}' % 10**4000 + b"0" * 400, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"7", "must be a JSON object"),
    ],
)
def test_any_other_line_is_an_error_that_names_it(folder, line, message):
    root, count, error = folder
    with (root / "manifest.jsonl").open("ab") as manifest:
        manifest.write(line + b"\n")
    with pytest.raises(error, match=rf"manifest\.jsonl, line 3: .*{message}"):
        count(root)


def test_a_byte_order_mark_at_the_start_is_an_error(folder):
    root, count, error = folder
    content = (root / "manifest.jsonl").read_bytes()
    (root / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    with pytest.raises(error, match=r"manifest\.jsonl, line 1: .*byte order mark"):
        count(root)


def test_an_empty_manifest_has_no_rows(folder):
    root, count, _ = folder
    (root / "manifest.jsonl").write_bytes(b"")
    assert count(root) == 0


def test_of_rows_with_one_id_the_last_counts_in_the_place_of_the_first(images):
    with (images / "manifest.jsonl").open("a") as manifest:
        row = json.loads((images / "manifest.jsonl").read_text().splitlines()[0])
        manifest.write(json.dumps(row | {"prompt": "another"}) + "\n")
    assert [(r.sample_id, r.prompt) for r in ImageSet.open(images).rows] == [
        ("a", "another"),
        ("b", "a photo of a single ball"),
    ]


METAS = [
    b"", b"{", b"[]", b"null", b"7", b"{}", b'{"schema": 7}', b'{"schema": null}',
    b"\xff\xfe{\0}\0", b'{"schema": "bsgal.image_set/2"}', b'{"schema": ["bsgal.image_set/1"]}',
    b"[" * 100_000, b'{"a":' * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("meta", METAS)
def test_a_meta_file_of_another_kind_is_an_error_that_names_it(folder, meta):
    root, count, error = folder
    (root / "meta.json").write_bytes(meta)
    with pytest.raises(error, match=r"meta\.json"):
        count(root)


@pytest.mark.parametrize("wrap", [b'{"schema": "%s", "x": NaN}', b'\xef\xbb\xbf{"schema": "%s"}'])
def test_a_meta_file_that_is_no_plain_json_is_an_error(folder, wrap):
    root, count, error = folder
    schema = json.loads((root / "meta.json").read_bytes())["schema"].encode()
    (root / "meta.json").write_bytes(wrap % schema)
    with pytest.raises(error, match=r"meta\.json"):
        count(root)


def test_settings_nested_without_end_are_refused(images, pool, make_stub):
    start = '{"schema": "bsgal.instance_pool/1", "config": '
    (pool / "meta.json").write_text(start + '{"a":' * 600 + "1" + "}" * 601)
    with pytest.raises(PoolError, match=r"meta\.json: .*nested"):
        build_pool(images, pool, methods=[make_stub()])


@pytest.mark.parametrize("name", ["meta.json", "manifest.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_an_error(folder, name):
    root, count, error = folder
    (root / name).unlink()
    (root / name).mkdir()
    with pytest.raises(error, match=rf"{name}"):
        count(root)


WRONG = {
    "instance_id": [None, 3, "", "a/b", "..", "x" * 300, "\ud800", "other"],
    "sample_id": [None, 3, "other"],
    "category_id": [None, "7", True, -1, 7.0, 2**63, 2**70, HUGE, [], {}, 8],
    "category_name": [None, 3, "", [], "\ud800"],
    "prompt": [3, [], "\udc00"],
    "file": [None, 3, "", "../a.png", "/etc/passwd", "instances/7/b.png", [], "\0"],
    "sha256": [None, 3, "", "0" * 63, "g" * 64, []],
    "label_mask_threshold": [None, 0, 256, "128", 128.0, True, 1],
    "method": [3, [], {}, "other"],
    "scores": [[], 3, {"stub": "1"}, {"stub": True}, {"stub": 2}, {"stub": HUGE}],
    "agreement": ["1", -0.1, 1.1, True, [], HUGE],
    "clip_score": ["1", -1.1, 1.1, True, []],
    "clip_similarity": ["1", -1.1, 1.1, True, []],
    "area_frac": ["1", -0.1, 1.1, True, [], None],
    "bbox_xywh": [None, 3, [], [0, 0, 1], [0, 0, 0, 1], [-1, 0, 1, 1], [0, 0, 1, 1.5], "0011",
                  [0, 0, 1, True], [0, 0, 1, 2**70]],
    "status": [None, 3, "", "ok", [], {}],
    "reason": [3, [], {}, "area: too small"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_field_of_a_pool_row_that_is_wrong_is_named(pool, images, make_stub, field, value):
    line = (pool / "manifest.jsonl").read_text().splitlines()[0]
    row = json.loads(line) | {field: value}
    with (pool / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(row) + "\n")
    with pytest.raises(PoolError, match=r"manifest\.jsonl, line 3: .*(must|must not) "):
        summarise_pool(pool)
    with pytest.raises(PoolError, match=r"manifest\.jsonl, line 3: "):
        build_pool(images, pool, methods=[make_stub()])


def test_a_dropped_row_names_its_reason_and_no_file(pool):
    line = (pool / "manifest.jsonl").read_text().splitlines()[1]
    for change in ({"reason": None}, {"reason": ""}, {"file": "instances/7/b.png"}):
        with (pool / "manifest.jsonl").open("a") as manifest:
            manifest.write(json.dumps(json.loads(line) | change) + "\n")
        with pytest.raises(PoolError, match=f"line 3: {next(iter(change))!r} must"):
            summarise_pool(pool)
        text = (pool / "manifest.jsonl").read_text().splitlines(keepends=True)
        (pool / "manifest.jsonl").write_text("".join(text[:2]))


@pytest.mark.parametrize("field", ["method", "agreement", "file", "reason", "scores", "status"])
def test_a_field_of_a_pool_row_that_is_missing_is_named(pool, field):
    lines = (pool / "manifest.jsonl").read_text().splitlines()
    for line in lines:
        row = json.loads(line)
        del row[field]
        (pool / "manifest.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(PoolError, match=f"line 1: {field!r} must be"):
            summarise_pool(pool)


def test_a_dropped_row_with_a_hash_has_a_box(pool):
    row = json.loads((pool / "manifest.jsonl").read_text().splitlines()[1]) | {"sha256": "0" * 64}
    (pool / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(PoolError, match="line 1: 'bbox_xywh' must be"):
        summarise_pool(pool)


def test_rows_of_the_first_version_are_read(pool):
    lines = (pool / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        del row["clip_similarity"]
    (pool / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert n_of_pool(pool) == 2


WRONG_IN_SET = {
    "sample_id": [None, 3, [], {}, "\ud800", "é" * 150],
    "category_id": [None, "7", True, -1, 7.0, 2**63, 2**70, HUGE, [], {}],
    "category_name": [None, 3, [], "", "\ud800"],
    "prompt": [None, 3, [], "\ud800"],
    "file": [3, [], {}, "a\0b"],
    "sha256": [3, "", "0" * 63, "x" * 64, []],
    "status": [None, 3, "", "Ok", "kept", [], {}],
    "reason": [3, [], {}, "\ud800"],
    "height": ["96", 0, -1, True, 9.5, [], 2**70],
    "width": ["96", 0, -1, True, 9.5, [], 2**70],
    "kind": [3, "thing", []],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG_IN_SET.items() for value in values],
)
def test_a_field_of_an_image_row_that_is_wrong_is_named(images, field, value):
    row = json.loads((images / "manifest.jsonl").read_text().splitlines()[0]) | {field: value}
    with (images / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(row) + "\n")
    with pytest.raises(ImageSetError, match=rf"manifest\.jsonl, line 3: '{field}' must "):
        ImageSet.open(images)
