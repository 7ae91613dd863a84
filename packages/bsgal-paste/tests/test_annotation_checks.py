from __future__ import annotations

import json
import math
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from bsgal_paste import AnnotationError, check_box, check_segmentation
from bsgal_paste._annotation_checks import _decompressed
from bsgal_paste._lvis import decode_segmentation, encode_mask

HW = (40, 60)
NAN, INF = math.nan, math.inf
DISC = np.hypot(*np.mgrid[-20:20, -30:30]) < 12
COUNTS = encode_mask(DISC)["counts"]


def rle(counts: object, size: object = (40, 60)) -> dict:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


BAD_SEGMENTATIONS = {
    "far": ([[10, 10, 1e9, 10, 50, 30]], "within -60 to 120 px"),
    "further": ([[10, 10, 1e30, 10, 50, 30]], "within -60 to 120 px"),
    "integer beyond floats": ([[10, 10, 10**400, 10, 50, 30]], "within -60 to 120 px"),
    "one NaN": ([[10, 10, NAN, 10, 50, 30]], "must be finite"),
    "NaN first": ([[NAN, 10, 40, 10, 50, 30]], "must be finite"),
    "all NaN": ([[NAN] * 6], "must be finite"),
    "infinite": ([[10, 10, INF, 10, 50, -INF]], "must be finite"),
    "text": ([[10, 10, "40", 10, 50, 30]], "must be a list of numbers"),
    "bool": ([[10, 10, True, 10, 50, 30]], "must be a list of numbers"),
    "none": ([[10, 10, None, 10, 50, 30]], "must be a list of numbers"),
    "nested": ([[[10, 10], [40, 10], [50, 30]]], "must be a list of numbers"),
    "flat": ([10, 10, 40, 10, 50, 30], "must be a list of numbers"),
    "odd": ([[10, 10, 40, 10, 50, 30, 7]], "7 coordinates, which is no number of points"),
    "short": ([[10, 10, 40, 10]], "fewer than three points"),
    "second one empty": ([[10, 10, 40, 10, 50, 30], []], "fewer than three points"),
    "zigzag": ([[-60, 0, 120, 0] * 20_000], "the outline of a polygon is .* px long"),
    "text in place": ("polygon", "must be a list of polygons or run lengths"),
    "number in place": (7, "must be a list of polygons or run lengths"),
    "no polygon": ((), "it has no polygon"),
    "counts empty": (rle(""), "empty, cut off or hold foreign"),
    "counts cut off": (rle(COUNTS[: len(COUNTS) // 2]), "add up to|cut off"),
    "counts lengthened": (rle(COUNTS + "5"), "add up to"),
    "counts foreign": (rle(COUNTS[:-1] + "ä"), "hold foreign characters"),
    "counts half a character": (rle(COUNTS[:-1] + "\ud800"), "hold foreign characters"),
    "counts run on": (rle(COUNTS[:-1] + "o"), "cut off"),
    "counts too long": (rle("oooooo0" + COUNTS), "a compressed run length has 7 characters"),
    "counts missing": ({"size": [40, 60]}, "`counts` of run lengths must be text or a list"),
    "counts a number": (rle(2400), "`counts` of run lengths must be text or a list"),
    "counts no number": (rle([NAN, 2400]), "`counts` of run lengths must be text or a list"),
    "counts broken numbers": (rle([2399.5, 0.5]), "`counts` of run lengths must be text or a list"),
    "counts of nothing": (rle([]), "`counts` of run lengths must be text or a list"),
    "counts short": (rle([2399]), "add up to 2399 px"),
    "counts negative": (rle([2500, -100]), "the shortest is -100"),
    "counts that wrap": (rle([2**32, 2400]), "add up to 4294969696 px"),
    "counts beyond integers": (rle([2**70]), "add up to"),
    "size of another image": (rle([2400], (60, 40)), r"the mask has size \(60, 40\)"),
    "size missing": ({"counts": [2400]}, "`size` of run lengths must be"),
    "size of floats": (rle([2400], (40.0, 60.0)), "`size` of run lengths must be"),
    "size of text": (rle([2400], "40"), "`size` of run lengths must be"),
    "size of three": (rle([2400], (40, 60, 1)), "`size` of run lengths must be"),
}


@pytest.mark.parametrize("name", BAD_SEGMENTATIONS)
def test_a_bad_segmentation_is_named(name):
    segmentation, message = BAD_SEGMENTATIONS[name]
    with pytest.raises(AnnotationError, match=f"^a.json: annotation 7: .*({message})"):
        check_segmentation(segmentation, HW, "a.json: annotation 7")
    with pytest.raises(AnnotationError, match=f"annotation 7: .*({message})"):
        decode_segmentation({"id": 7, "segmentation": segmentation}, *HW)


@pytest.mark.parametrize("cut", range(len(COUNTS)))
def test_run_lengths_cut_off_anywhere_are_refused(cut):
    with pytest.raises(AnnotationError, match=r"add up to|cut off"):
        check_segmentation(rle(COUNTS[:cut]), HW, "annotation 7")


def test_every_form_of_a_good_segmentation_passes():
    encoded = coco_mask.encode(np.asfortranarray(DISC.view(np.uint8)))
    for segmentation in (
        [[-60, 0, 120, 0, 120, 100.5]],
        [[0, 0, 5, 0, 5, 5], [20, 20, 30, 20, 30, 30, 20, 30]],
        rle(COUNTS),
        rle(encoded["counts"]),
        rle([2400]),
        rle([0, 2400]),
        rle([5, 0, 2395]),
    ):
        check_segmentation(segmentation, HW, "annotation 7")


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_compressed_runs_are_those_that_pycocotools_wrote(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask.ravel(order="F")[-1]]])
    edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
    expected = np.diff(np.concatenate([[0], edges]))
    np.testing.assert_array_equal(_decompressed(encode_mask(mask)["counts"], "here"), expected)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], "four numbers"),
        ([1, 2, 3, "4"], "four numbers"),
        ([1, 2, 3, True], "four numbers"),
        ([1, 2, 3, None], "four numbers"),
        ("1234", "four numbers"),
        (None, "four numbers"),
        ([1, 2, -3, 4], "at least 0"),
        ([1, 2, NAN, 4], "at least 0"),
        ([NAN, 2, 3, 4], "within -60 to 120 px"),
        ([1, NAN, 3, 4], "within -60 to 120 px"),
        ([1, 2, INF, 4], "within -60 to 120 px"),
        ([1, 2, 3, 1e9], "within -60 to 120 px"),
        ([1e9, 2, 3, 4], "within -60 to 120 px"),
        ([-61, 2, 3, 4], "within -60 to 120 px"),
        ([100, 2, 21, 4], "within -60 to 120 px"),
        ([1, 2, 3, 2**70], "within -60 to 120 px"),
    ],
)
def test_a_bad_box_is_named(box, message):
    with pytest.raises(AnnotationError, match=f"^annotation 7: bbox must be .*{message}"):
        check_box(box, HW, "annotation 7")


@pytest.mark.parametrize("box", [[0, 0, 60, 40], [-5.5, -1, 80, 41], [60, 40, 0, 0], (1, 2, 3, 4)])
def test_a_box_in_or_around_its_image_passes(box):
    check_box(box, HW, "annotation 7")


@pytest.mark.parametrize("name", ["far", "further", "one NaN", "all NaN", "counts cut off"])
def test_compose_refuses_a_file_that_would_end_it(name, tmp_path, write_pool):
    pool = write_pool([{"category_id": 1}])
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    annotation = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 20]}
    content = {
        "images": [{"id": 1, "width": 60, "height": 40, "file_name": "a.png"}],
        "annotations": [{**annotation, "segmentation": BAD_SEGMENTATIONS[name][0]}],
        "categories": [{"id": 1, "name": "thing_1"}],
    }
    # NaN and Infinity are no JSON, but Python writes them; 1e999 is JSON and is read as infinity.
    (tmp_path / "a.json").write_text(json.dumps(content).replace("NaN", "1e999"))
    finished = subprocess.run(
        [
            sys.executable, "-m", "bsgal_paste.cli", "compose", "--pool", pool,
            "--annotations", tmp_path / "a.json", "--image-root", tmp_path,
            "--out", tmp_path / "out", "--scale-range", "0.2", "0.4",
        ],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )  # fmt: skip
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"bsgal-paste: {tmp_path / 'a.json'}: annotation 7: ")
    assert not (tmp_path / "out").exists()
