"""One rule for manifests: every package that reads one comes to the same conclusion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bsgal_generate
import bsgal_generate.errors
import bsgal_mask
import bsgal_paste
import bsgal_paste.errors
from bsgal_generate._funnel import pool_outcomes
from bsgal_mask._pool_rows import read_pool_rows

Reader = Callable[[Path], list[str]]


def image_row(n: int) -> dict[str, Any]:
    return {
        "sample_id": f"1-single-{n:05d}", "category_id": 1, "category_name": "apple",
        "kind": "object", "prompt_id": "single", "prompt": "an apple", "negative_prompt": None,
        "seed": n, "attempt": 0, "model": "m", "scheduler": "s", "num_inference_steps": 1,
        "guidance_scale": 1.0, "height": 8, "width": 8, "file": f"images/1/{n}.png",
        "sha256": f"{n:064x}", "status": "ok", "reason": None,
    }  # fmt: skip


def pool_row(n: int) -> dict[str, Any]:
    return {
        "instance_id": f"i{n}", "category_id": 1, "category_name": "apple", "sample_id": f"i{n}",
        "prompt": "an apple", "file": f"instances/1/i{n}.png", "label_mask_threshold": 128,
        "method": "border", "scores": {"border": 0.9}, "agreement": None, "clip_score": None,
        "clip_similarity": None, "area_frac": 0.5, "bbox_xywh": [0, 0, 4, 4], "status": "kept",
        "reason": None, "sha256": f"{n:064x}",
    }  # fmt: skip


def paste_ids(root: Path) -> list[str]:
    try:
        pool = bsgal_paste.InstancePool.open(root)
    except bsgal_paste.errors.EmptyPoolError:
        return []
    return [pool.instance_id(position) for position in range(len(pool))]


SET, POOL = ("bsgal.image_set/1", image_row), ("bsgal.instance_pool/1", pool_row)
READERS: dict[str, tuple[tuple[str, Callable[[int], dict[str, Any]]], Reader, type[ValueError]]] = {
    "generate-set": (
        SET,
        lambda root: [row.sample_id for row in bsgal_generate.ImageSet.open(root)],
        bsgal_generate.errors.ImageSetError,
    ),
    "mask-set": (
        SET,
        lambda root: [row.sample_id for row in bsgal_mask.ImageSet.open(root).rows],
        bsgal_mask.ImageSetError,
    ),
    "generate-pool": (
        POOL,
        lambda root: [*pool_outcomes(root)],
        bsgal_generate.errors.ImageSetError,
    ),
    "mask-pool": (POOL, lambda root: [*read_pool_rows(root)], bsgal_mask.PoolError),
    "paste-pool": (POOL, paste_ids, bsgal_paste.errors.PoolFormatError),
}


class Folder:
    """An image set or a pool of three rows, and what its reader makes of it."""

    def __init__(self, root: Path, reader: str) -> None:
        (schema, self.row), self._read, self.error = READERS[reader]
        (root / "meta.json").write_text(json.dumps({"schema": schema}))
        self.root, self.manifest = root, root / "manifest.jsonl"
        self.whole = b"".join(self.line(self.row(n)) for n in range(3))

    @staticmethod
    def line(row: dict[str, Any]) -> bytes:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"

    def read(self, content: bytes) -> list[str]:
        self.manifest.write_bytes(content)
        try:
            return self._read(self.root)
        finally:
            assert self.manifest.read_bytes() == content, "reading never changes the file"


@pytest.fixture(params=READERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path, request.param)


def test_whole_and_empty_manifests_are_read(folder: Folder) -> None:
    assert len(folder.read(folder.whole)) == 3
    assert folder.read(b"") == []


@pytest.mark.parametrize("torn", [b'{"instance_id": "i9', b"{", b"12", b"\0\0\0\0", b"nul"])
def test_torn_last_line_is_left_out(torn: bytes, folder: Folder) -> None:
    assert folder.read(folder.whole + torn) == folder.read(folder.whole)
    assert folder.read(torn) == []


def test_last_line_that_lacks_its_end_alone_counts(folder: Folder) -> None:
    assert folder.read(folder.whole[:-1]) == folder.read(folder.whole)
    wrong = folder.line(folder.row(3) | {"category_id": [], "sample_id": 3})
    with pytest.raises(folder.error, match="line 4"):
        folder.read(folder.whole + wrong[:-1])


def test_last_of_several_rows_counts_in_the_place_of_the_first(folder: Folder) -> None:
    expected = folder.read(folder.whole)
    assert folder.read(folder.whole + folder.line(folder.row(0))) == expected


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda whole: b"\xef\xbb\xbf" + whole, 1),
        (lambda whole: whole.replace(b"apple", b"app\0e", 1), 1),
        (lambda whole: b"\0" * 40 + b"\n" + whole, 1),
        (lambda whole: whole.decode().encode("utf-16"), 1),
        (lambda whole: whole + b"\xff\xfe\n", 4),
        (lambda whole: whole + b"\n", 4),
        (lambda whole: whole + b"[]\n", 4),
        (lambda whole: whole + b"7\n", 4),
        (lambda whole: whole + b'{"a": NaN}\n', 4),
        (lambda whole: whole + b"[" * 100_000 + b"\n", 4),
        (lambda whole: whole + b'{"a": 1' + b"0" * 5000 + b"}\n", 4),
    ],
    ids=[
        "mark", "nul-inside", "nuls", "utf-16", "no-utf-8", "blank", "list", "number", "nan",
        "nested", "long-number",
    ],
)  # fmt: skip
def test_damaged_line_is_an_error_that_names_it(
    damage: Callable[[bytes], bytes], line: int, folder: Folder
) -> None:
    with pytest.raises(folder.error) as caught:
        folder.read(damage(folder.whole))
    assert f"{folder.manifest}, line {line}" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"status": 1},
        {"sample_id": 5, "instance_id": 5},
        {"sample_id": None, "instance_id": None},
        {"sample_id": "a\ud800", "instance_id": "a\ud800"},
        {"status": "dropped", "reason": 5},
    ],
)
def test_row_that_breaks_the_schema_is_an_error(change: dict[str, Any], folder: Folder) -> None:
    content = json.dumps(folder.row(3) | change).encode() + b"\n"
    with pytest.raises(folder.error) as caught:
        folder.read(folder.whole + content)
    assert f"{folder.manifest}, line 4" in str(caught.value)


# The funnel of bsgal-generate reads of a pool what became of the samples, and nothing else.
@pytest.mark.parametrize("reader", [name for name in READERS if name != "generate-pool"])
@pytest.mark.parametrize(
    "change",
    [
        {"category_id": "1"},
        {"category_id": True},
        {"category_id": -1},
        {"category_id": 1.0},
        {"category_id": 2**70},
        {"category_name": 3},
        {"category_name": " "},
        {"file": "../a.png"},
        {"file": "/a.png"},
        {"file": "a\\b.png"},
        {"file": 3},
        {"sha256": "12"},
        {"sha256": 3},
    ],
)
def test_field_that_breaks_the_schema_is_an_error(
    change: dict[str, Any], reader: str, tmp_path: Path
) -> None:
    folder = Folder(tmp_path, reader)
    with pytest.raises(folder.error) as caught:
        folder.read(folder.whole + folder.line(folder.row(3) | change))
    assert f"{folder.manifest}, line 4" in str(caught.value)
