from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from bsgal_mask import CategoryBar, Chosen, PoolError, build_pool, summarise_pool, verify_pool
from bsgal_mask._build import count_open
from bsgal_mask.cli import main

DAMAGES = ("deleted", "cut", "emptied", "flipped", "one pixel", "another's", "a folder")


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def one_pixel_header(png):
    """Return a PNG whose header says 1 x 1, with a checksum that fits it."""
    header = bytearray(png[12:29])
    header[4:12] = (1).to_bytes(4, "big") * 2
    return png[:12] + bytes(header) + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def damage(path, how):
    content = path.read_bytes()
    if how in ("deleted", "a folder"):
        path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif how == "one pixel":
        path.write_bytes(one_pixel_header(content))
    elif how == "another's":
        path.write_bytes((path.parent / "b.png").read_bytes())


@pytest.fixture
def images(make_image_set, drawn):
    return make_image_set({"a": drawn("disc")[0], "b": drawn("ring")[0], "bad": "blank"})


@pytest.fixture
def pool(images, make_stub, tmp_path):
    build_pool(images, tmp_path / "pool", methods=[make_stub()])
    return tmp_path / "pool"


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "a folder"])
def test_a_rerun_makes_a_damaged_instance_again_and_says_so(images, pool, make_stub, how, caplog):
    whole = files_of(pool)
    damage(pool / "instances/7/a.png", how)
    assert count_open(images, pool) == (2, 3)
    stub = make_stub()
    summary = build_pool(images, pool, methods=[stub])
    assert (summary.n_kept, summary.n_dropped) == (2, 1)
    assert stub.n_segmented == 1
    assert files_of(pool) == whole
    assert "1 instance is damaged and made again: a (" in caplog.text


def test_a_whole_pool_is_left_alone_without_a_word(images, pool, make_stub, caplog):
    build_pool(images, pool, methods=[make_stub()])
    assert "made again" not in caplog.text


@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_damaged_instance_whose_image_is_gone_is_dropped(images, pool, make_stub, how):
    damage(pool / "instances/7/a.png", how)
    (images / "images/7/a.png").unlink()
    summary = build_pool(images, pool, methods=[make_stub()])
    assert (summary.n_kept, summary.n_dropped) == (1, 2)
    assert summary == summarise_pool(pool)
    assert not verify_pool(pool).damaged


@pytest.mark.parametrize(
    "change",
    [
        {"category_name": "cat"},
        {"prompt": "another"},
        {"sha256": "0" * 64},
        {"bbox_xywh": [0, 0, 1, 1]},
    ],
)
def test_a_row_that_says_other_than_its_image_is_made_again(images, pool, make_stub, change):
    lines = (pool / "manifest.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[0])
    (pool / "manifest.jsonl").write_text(json.dumps(row | change) + "\n" + "".join(lines[1:]))
    stub = make_stub()
    build_pool(images, pool, methods=[stub])
    assert stub.n_segmented == 1
    last = [json.loads(line) for line in (pool / "manifest.jsonl").read_text().splitlines()][-1]
    assert last == row


@pytest.mark.parametrize("how", DAMAGES)
def test_verify_names_the_damaged_instance(pool, how):
    assert verify_pool(pool).damaged == {}
    assert verify_pool(pool).n_checked == 2
    damage(pool / "instances/7/a.png", how)
    report = verify_pool(pool)
    assert list(report.damaged) == ["a"]
    assert report.n_checked == 2


def test_verify_follows_no_link_out_of_the_pool(pool, tmp_path):
    path = pool / "instances/7/a.png"
    path.rename(tmp_path / "a.png")
    path.symlink_to(tmp_path / "a.png")
    assert "link" in verify_pool(pool).damaged["a"]


def test_verify_changes_nothing(pool):
    (pool / "manifest.jsonl").write_bytes((pool / "manifest.jsonl").read_bytes() + b'{"instance')
    damage(pool / "instances/7/a.png", "cut")
    before = files_of(pool)
    verify_pool(pool)
    summarise_pool(pool)
    assert files_of(pool) == before


def test_the_command_verifies_and_says_how_to_mend(images, pool, capsys):
    assert main(["verify", str(pool)]) == 0
    assert capsys.readouterr().out == "2 kept instances: all whole\n"
    damage(pool / "instances/7/a.png", "flipped")
    assert main(["verify", str(pool)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("a: ")
    assert "1 of 2 kept instances is damaged" in captured.err
    assert "the command that made the pool" in captured.err
    assert captured.err.count("\n") == 1


def test_the_command_verifies_no_other_folder(images, capsys):
    assert main(["verify", str(images)]) == 1
    assert "schema must be 'bsgal.instance_pool/1'" in capsys.readouterr().err


class Scored:
    """Take the first method and score images by their width, in thousandths."""

    category_bar = CategoryBar(min_score=0.5, tolerance=0)

    def check(self, methods):
        pass

    def choose(self, batch):
        return [Chosen("stub", None, clip_score=one.image.shape[1] / 1000) for one in batch]

    def config(self):
        return {}


class StopError(Exception):
    pass


@pytest.mark.parametrize("how", DAMAGES[:5])
def test_an_image_that_waits_for_its_category_is_made_again_too(
    make_image_set, make_stub, drawn, tmp_path, how
):
    """The file of an image below the bar is damaged between the run that wrote it and the next."""
    images = make_image_set({"s": drawn("disc", side_px=90)[0], "t": drawn("disc")[0]})
    settings = {"methods": [make_stub()], "choose": Scored(), "batch_size": 1}
    build_pool(images, tmp_path / "expected", **settings)

    def stop(done, total):
        if done == total:
            raise StopError

    pool = tmp_path / "pool"
    with pytest.raises(StopError):
        build_pool(images, pool, **settings, progress=stop)
    damage(pool / "instances/7/t.png", how)
    assert build_pool(images, pool, **settings).n_kept == 1
    assert files_of(pool) == files_of(tmp_path / "expected")
    assert not verify_pool(pool).damaged


def test_a_dropped_row_that_is_another_images_is_made_again(
    make_image_set, make_stub, drawn, tmp_path
):
    images = make_image_set({"empty": np.full_like(drawn("disc")[0], 200)})
    build_pool(images, tmp_path / "pool", methods=[make_stub()])
    manifest = tmp_path / "pool/manifest.jsonl"
    row = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(row | {"category_id": 8}) + "\n")
    build_pool(images, tmp_path / "pool", methods=[make_stub()])
    assert json.loads(manifest.read_text().splitlines()[-1]) == row


def test_a_row_follows_a_change_of_its_images_status(images, pool, make_stub, manifest_of):
    lines = (images / "manifest.jsonl").read_text().splitlines()
    row = json.loads(lines[0]) | {"status": "flagged", "file": None, "sha256": None}
    with (images / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(row) + "\n")
    assert build_pool(images, pool, methods=[make_stub()]).n_kept == 1
    assert manifest_of(pool)[-1]["reason"] == "image-set: status flagged"


def test_a_manifest_that_was_emptied_is_written_anew(images, pool, make_stub):
    whole = files_of(pool)
    (pool / "manifest.jsonl").write_bytes(b"")
    build_pool(images, pool, methods=[make_stub()])
    assert files_of(pool) == whole


def test_a_folder_in_a_files_place_is_a_readable_error(images, pool, make_stub):
    damage(pool / "instances/7/a.png", "a folder")
    with pytest.raises(PoolError, match=r"cannot write the pool .*a\.png"):
        build_pool(images, pool, methods=[make_stub()])


def test_the_one_pixel_header_is_a_sound_png(pool):
    png = one_pixel_header((pool / "instances/7/a.png").read_bytes())
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (1, 1)
        assert np.asarray(picture).shape == (1, 1, 4)


@pytest.mark.parametrize("look", [summarise_pool, verify_pool])
def test_a_pool_without_its_manifest_is_not_taken_for_an_empty_one(look, images, pool, make_stub):
    whole = files_of(pool)
    (pool / "manifest.jsonl").unlink()
    with pytest.raises(PoolError, match=r"it has no manifest\.jsonl"):
        look(pool)
    assert count_open(images, pool)[0] > 0
    build_pool(images, pool, methods=[make_stub()])
    assert files_of(pool) == whole
