from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from bsgal_mask import (
    AgreementChoice,
    AreaFilter,
    BorderSegmenter,
    CleanUp,
    FixedChoice,
    ImageSetError,
    PoolError,
    SegmentationError,
    build_pool,
    summarise_pool,
)

FIELDS = [
    "instance_id", "category_id", "category_name", "sample_id", "prompt", "file",
    "label_mask_threshold", "method", "scores", "agreement", "clip_score",
    "clip_similarity", "area_frac", "bbox_xywh", "status", "reason", "sha256",
]  # fmt: skip


@pytest.fixture
def pool(tmp_path):
    return tmp_path / "pool"


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_every_row_ends_as_exactly_one_row(
    make_image_set, make_stub, drawn, pool, manifest_of, caplog
):
    disc, _ = drawn("disc")
    whole = make_image_set({"x": disc}) / "images/7/x.png"
    images = make_image_set(
        {
            "blank": "blank",
            "cut": whole.read_bytes()[:200],
            "text": b"no image",
            "good": disc,
            "empty": np.full_like(disc, 200),
            "small": np.where(np.indices((96, 96)).sum(0)[..., None] < 8, disc[48, 48], disc[0, 0]),
            "late": disc,
        }
    )
    (images / "images/7/late.png").unlink()
    summary = build_pool(images, pool, methods=[make_stub()], batch_size=3)
    rows = {row["instance_id"]: row for row in manifest_of(pool)}
    assert list(rows) == ["x", "blank", "cut", "text", "good", "empty", "small", "late"]
    assert all(list(row) == FIELDS for row in rows.values())
    assert rows["good"]["status"] == "kept"
    assert rows["good"]["reason"] is None
    reasons = {key: row["reason"] for key, row in rows.items() if row["status"] == "dropped"}
    assert reasons.pop("blank") == "image-set: status blank; as drawn"
    assert reasons.pop("cut").startswith("image: damaged")
    assert reasons.pop("text").startswith("image: damaged")
    assert reasons.pop("late").startswith("image: cannot read the file")
    assert reasons.pop("empty") == "empty: no object was found"
    assert reasons.pop("small").startswith("area: 0.0039 of the image")
    assert not reasons
    assert (summary.n_kept, summary.n_dropped) == (2, 6)
    assert summary.dropped_by_reason == {"image": 3, "image-set": 1, "empty": 1, "area": 1}
    assert summary == summarise_pool(pool)
    assert "dropped sample cut (images/7/cut.png)" in caplog.text


def test_a_kept_instance_is_a_tight_straight_alpha_crop(make_image_set, drawn, pool, manifest_of):
    image, truth = drawn("ring")
    build_pool(make_image_set({"r": image}), pool, methods=[BorderSegmenter()])
    (row,) = manifest_of(pool)
    path = pool / row["file"]
    assert row["file"] == "instances/7/r.png"
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    rgba = np.asarray(Image.open(path))
    x, y, width, height = row["bbox_xywh"]
    assert rgba.shape == (height, width, 4)
    alpha = rgba[..., 3]
    seen = alpha > 0
    np.testing.assert_array_equal(rgba[seen, :3], image[y : y + height, x : x + width][seen])
    assert not rgba[~seen].any()
    for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        assert edge.any()
    assert ((alpha > 0) & (alpha < 255)).any()
    label = np.zeros_like(truth)
    label[y : y + height, x : x + width] = alpha >= row["label_mask_threshold"]
    assert row["area_frac"] == pytest.approx(label.mean(), abs=1e-6)
    assert (label == truth).mean() > 0.98
    assert not label[48, 48]


def test_the_meta_file_says_what_was_done(make_image_set, make_stub, drawn, pool):
    images = make_image_set({"a": drawn("disc")[0]})
    build_pool(images, pool, methods=[make_stub()], filters=[AreaFilter(max_frac=0.5)])
    meta = json.loads((pool / "meta.json").read_text())
    assert meta["schema"] == "bsgal.instance_pool/1"
    assert (
        meta["source"]["image_set"]
        == hashlib.sha256((images / "meta.json").read_bytes()).hexdigest()
    )
    assert meta["config"]["methods"] == {"stub": {"grow_px": 0}}
    assert meta["config"]["filters"] == [{"rule": "area", "min_frac": 0.05, "max_frac": 0.5}]
    assert meta["config"]["clean_up"]["parts"] == "all"
    assert meta["config"]["label_mask_threshold"] == 128
    assert {"bsgal-mask", "numpy", "pillow"} <= meta["versions"].keys()


def test_scores_and_agreement_of_two_methods(make_image_set, make_stub, drawn, pool, manifest_of):
    images = make_image_set({"a": drawn("disc")[0]})
    methods = [make_stub("one"), make_stub("two", grow_px=2)]
    build_pool(images, pool, methods=methods, choose=FixedChoice(method="two"))
    (row,) = manifest_of(pool)
    assert row["method"] == "two"
    assert row["scores"] == {"one": 1.0, "two": 1.0}
    assert 0.7 < row["agreement"] < 0.95


def test_disagreement_drops_and_still_records(make_image_set, make_stub, drawn, pool, manifest_of):
    images = make_image_set({"a": drawn("disc")[0]})
    methods = [make_stub("one"), make_stub("two", grow_px=2)]
    build_pool(images, pool, methods=methods, choose=AgreementChoice(min_agreement=0.95))
    (row,) = manifest_of(pool)
    assert row["status"] == "dropped"
    assert row["reason"].startswith("disagreement: IoU 0.")
    assert row["file"] is None
    assert row["area_frac"] > 0
    assert row["bbox_xywh"] is not None
    assert not (pool / "instances").exists()


def test_one_failing_image_does_not_cost_the_batch(
    make_image_set, make_stub, drawn, pool, manifest_of
):
    class Fragile(type(make_stub())):
        def segment(self, images, category_names):
            if any(image.shape[0] == 50 for image in images):
                raise SegmentationError("fifty rows")
            return super().segment(images, category_names)

    disc, _ = drawn("disc")
    images = make_image_set({"a": disc, "b": disc[:50], "c": disc})
    other = make_stub("other")
    build_pool(images, pool, methods=[Fragile(), other])
    rows = manifest_of(pool)
    assert [row["status"] for row in rows] == ["kept", "dropped", "kept"]
    assert rows[1]["reason"] == "method: stub failed (fifty rows)"
    assert other.n_segmented == 2


def test_full_and_empty_masks_are_legal_and_left_to_the_rules(
    make_image_set, make_stub, drawn, tmp_path, manifest_of
):
    class Full(type(make_stub())):
        def segment(self, images, category_names):
            return [np.full(image.shape[:2], self.grow_px, np.float32) for image in images]

    images = make_image_set({"a": drawn("disc")[0]})
    for value, dropped, kept in ((0, "empty: ", "empty: "), (1, "area: 1.0000", None)):
        for filters, reason in (([AreaFilter()], dropped), ([], kept)):
            pool = tmp_path / f"{value}-{len(filters)}"
            build_pool(images, pool, methods=[Full(grow_px=value)], filters=filters)
            (row,) = manifest_of(pool)
            assert (row["reason"] or "").startswith(reason or "")
            assert (row["status"] == "kept") is (reason is None)


def test_a_finished_pool_is_not_worked_on_again(make_image_set, make_stub, drawn, pool):
    images = make_image_set({"a": drawn("disc")[0], "b": "blank"})
    first = build_pool(images, pool, methods=[make_stub()])
    before = files_of(pool)
    stub = make_stub()
    assert build_pool(images, pool, methods=[stub]) == first
    assert stub.n_segmented == 0
    assert files_of(pool) == before


def test_new_rows_and_repaired_images_are_taken_up(
    make_image_set, make_stub, drawn, pool, manifest_of
):
    disc, _ = drawn("disc")
    images = make_image_set({"a": disc, "b": "blank", "c": disc, "empty": disc[:20, :20]})
    content = (images / "images/7/c.png").read_bytes()
    (images / "images/7/c.png").write_bytes(content[:99])
    build_pool(images, pool, methods=[make_stub()])
    (images / "images/7/c.png").write_bytes(content)
    make_image_set({"b": disc, "d": disc})
    stub = make_stub()
    summary = build_pool(images, pool, methods=[stub])
    assert stub.n_segmented == 3
    assert (summary.n_kept, summary.n_dropped) == (4, 1)
    assert summary == summarise_pool(pool)
    last = {row["instance_id"]: row["status"] for row in manifest_of(pool)}
    assert last == {"a": "kept", "b": "kept", "c": "kept", "empty": "dropped", "d": "kept"}


def test_a_torn_row_and_a_leftover_file_are_replaced(make_image_set, make_stub, drawn, pool):
    images = make_image_set({"a": drawn("disc")[0], "b": drawn("ring")[0]})
    build_pool(images, pool, methods=[make_stub()])
    whole = files_of(pool)
    lines = whole["manifest.jsonl"].splitlines(keepends=True)
    (pool / "manifest.jsonl").write_bytes(lines[0] + lines[1][:40])
    (pool / "instances/7/b.png").rename(pool / "instances/7/.b.png.tmp")
    build_pool(images, pool, methods=[make_stub()])
    assert files_of(pool) == whole


def test_other_settings_are_refused_naming_the_difference(make_image_set, make_stub, drawn, pool):
    images = make_image_set({"a": drawn("disc")[0]})
    build_pool(images, pool, methods=[make_stub()])
    before = files_of(pool)
    with pytest.raises(PoolError, match=r"config\.methods\.stub\.grow_px: 0 before, 1 now"):
        build_pool(images, pool, methods=[make_stub(grow_px=1)])
    with pytest.raises(PoolError, match=r'clean_up\.parts: "all" before, "largest" now'):
        build_pool(images, pool, methods=[make_stub()], clean_up=CleanUp(parts="largest"))
    with pytest.raises(PoolError, match=r"label_mask_threshold: 128 before, 64 now"):
        build_pool(images, pool, methods=[make_stub()], label_mask_threshold=64)
    with pytest.raises(PoolError, match=r"config\.methods\.new\.grow_px: absent before"):
        build_pool(images, pool, methods=[make_stub(), make_stub("new")])
    (images / "meta.json").write_text('{"schema": "bsgal.image_set/1", "config": {}}')
    with pytest.raises(PoolError, match=r"source\.image_set"):
        build_pool(images, pool, methods=[make_stub()])
    assert files_of(pool) == before


def test_the_batch_size_changes_nothing(make_image_set, make_stub, drawn, tmp_path):
    images = make_image_set({str(i): drawn("disc", side_px=40 + i)[0] for i in range(5)})
    for size in (1, 2, 5):
        build_pool(images, tmp_path / str(size), methods=[BorderSegmenter()], batch_size=size)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2") == files_of(tmp_path / "5")


def test_a_folder_with_something_else_in_it_is_refused(make_image_set, make_stub, pool):
    images = make_image_set({"a": "blank"})
    pool.mkdir()
    (pool / "manifest.jsonl").write_text("")
    with pytest.raises(PoolError, match=r"has a manifest\.jsonl but no meta\.json"):
        build_pool(images, pool, methods=[make_stub()])
    with pytest.raises(PoolError, match=r"schema must be 'bsgal\.instance_pool/1'"):
        build_pool(images, images, methods=[make_stub()])
    with pytest.raises(PoolError, match=r"not an instance pool: it has no meta\.json"):
        summarise_pool(pool)


def test_an_unwritable_folder_is_a_readable_error(make_image_set, make_stub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PoolError, match=r"cannot write the pool .*file/pool"):
        build_pool(make_image_set({"a": "blank"}), tmp_path / "file/pool", methods=[make_stub()])


def test_impossible_arguments_are_refused_before_any_work(make_image_set, make_stub, pool):
    images = make_image_set({"a": "blank"})
    for arguments, message in (
        ({"methods": []}, "`methods` must be one or more"),
        ({"methods": [make_stub(), make_stub()]}, "with different names"),
        ({"choose": AgreementChoice()}, "at least two methods"),
        ({"choose": FixedChoice(method="no")}, "`method` must be one that the run uses"),
        ({"label_mask_threshold": 0}, "`label_mask_threshold`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"max_image_px": 0}, "`max_image_px`"),
    ):
        with pytest.raises(ValueError, match=message):
            build_pool(images, pool, **({"methods": [make_stub()]} | arguments))
    assert not pool.exists()
    with pytest.raises(ImageSetError, match="not an image set"):
        build_pool(pool, pool, methods=[make_stub()])


def test_progress_counts_every_row_and_goes_on_where_it_stopped(
    make_image_set, make_stub, drawn, pool
):
    images = make_image_set({"a": drawn("disc")[0], "b": "blank", "c": drawn("disc")[0]})
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_pool(images, pool, methods=[make_stub()], progress=stop, batch_size=1)
    assert seen == [(1, 3), (2, 3)]
    later = []
    build_pool(images, pool, methods=[make_stub()], progress=lambda done, total: later.append(done))
    # The blank row is looked at again, in case it was redrawn.
    assert later == [2, 3]


def test_summary_reads_well(make_image_set, make_stub, drawn, pool):
    images = make_image_set({"a": drawn("disc")[0], "b": "blank", "c": "failed"})
    summary = build_pool(images, pool, methods=[make_stub()])
    assert str(summary) == ("3 images: 1 kept (1 of 1 categories), 2 dropped\n       2  image-set")
    assert summary.kept_by_category == {"ball_(toy)": 1}


def test_an_empty_image_set_gives_an_empty_pool(make_image_set, make_stub, pool):
    summary = build_pool(make_image_set({}), pool, methods=[make_stub()])
    assert (summary.n_kept, summary.n_dropped) == (0, 0)
    assert summarise_pool(pool) == summary


def test_kill_at_random_moments_loses_nothing(make_image_set, drawn, tmp_path):
    """The command line is killed at moments spread over its whole working time."""
    samples = {f"s{i}": drawn("disc", side_px=40 + i)[0] for i in range(40)}
    images = make_image_set(samples | {"bad": b"no image"})
    (tmp_path / "mask.toml").write_text("[pool]\nbatch_size = 3\n")
    command = [sys.executable, "-m", "bsgal_mask.cli", "run", str(images)]
    command += ["--config", str(tmp_path / "mask.toml")]
    expected, pool = tmp_path / "expected", tmp_path / "killed"
    subprocess.run([*command, "--out", str(expected), "--quiet"], check=True, capture_output=True)
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(6):
        process = subprocess.Popen(
            [*command, "--out", str(pool), "--quiet"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = counts[-1] if counts else 0
        # From the first new row on, so that a slow start is not what is killed.
        while process.poll() is None and n_rows(pool) <= before:
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.08)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(n_rows(pool))
    # Some of the kills came in the midst of the work.
    assert any(0 < count < len(samples) + 1 for count in counts)
    subprocess.run([*command, "--out", str(pool), "--quiet"], check=True, capture_output=True)
    left = files_of(pool)
    assert not [name for name in left if name.endswith(".tmp")]
    assert left == files_of(expected)


def n_rows(pool):
    manifest = pool / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0
