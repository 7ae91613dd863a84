from __future__ import annotations

import json
import re

import numpy as np
import pytest

from bsgal_mask import SegmentationError, build_pool

N_IN_A_ROW = 10


def odd(image):
    return image.shape[0] % 2 == 1


class Failing:
    """Fail on images of odd height in some way; find the red of others."""

    name = "mine"

    def __init__(self, fail):
        self.fail = fail

    def config(self):
        return {}

    def segment(self, images, category_names):
        return [
            self.fail(image)
            if odd(image)
            else (image[..., 0].astype(int) - image[..., 1] > 60).astype(np.float32)
            for image in images
        ]


class OwnError(Exception):
    """What a library of a method's own may raise."""


def raising(error):
    def fail(image):
        raise error

    return fail


def full(image):
    return np.ones(image.shape[:2], np.float32)


FAILURES = [
    (lambda image: None, "method: mine must return .* got NoneType"),
    (lambda image: full(image).tolist(), "method: mine must return .* got list"),
    (lambda image: full(image)[1:], r"method: mine must return .* got float32 \(40, 41\)"),
    (lambda image: full(image).astype(np.float64), "method: mine must return .* got float64"),
    (lambda image: full(image).astype(bool), "method: mine must return .* got bool"),
    (lambda image: full(image) * 255, r"method: mine must return .* got values from 255 to 255"),
    (lambda image: full(image) - 1.5, r"method: mine must return .* values from -0\.5 to -0\.5"),
    (lambda image: full(image) * np.float32(np.nan), "non-finite: mine gave no numbers"),
    (lambda image: full(image) * np.float32(np.inf), "non-finite: mine gave no numbers"),
    (raising(SegmentationError("forty-one")), r"method: mine failed \(forty-one\)"),
    (raising(ValueError("forty-one")), r"method: mine failed \(ValueError: forty-one\)"),
    (raising(RuntimeError("no memory")), r"method: mine failed \(RuntimeError: no memory\)"),
    (raising(ZeroDivisionError()), r"method: mine failed \(ZeroDivisionError\)"),
    (raising(KeyError("red")), r"method: mine failed \(KeyError: 'red'\)"),
    (raising(OwnError("its own")), r"method: mine failed \(OwnError: its own\)"),
]


@pytest.fixture
def images(make_image_set, drawn):
    sides = [40, 41, 42, 43, 44]
    return make_image_set({f"s{side}": drawn("disc", side_px=side)[0] for side in sides})


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(("fail", "reason"), FAILURES)
def test_a_failure_is_the_images_reason_and_the_run_goes_on(
    images, tmp_path, manifest_of, fail, reason, batch_size
):
    pool = tmp_path / "pool"
    summary = build_pool(images, pool, methods=[Failing(fail)], batch_size=batch_size)
    assert (summary.n_kept, summary.n_dropped) == (3, 2)
    rows = {row["instance_id"]: row for row in manifest_of(pool)}
    assert {key for key, row in rows.items() if row["status"] == "kept"} == {"s40", "s42", "s44"}
    assert rows["s41"]["reason"] is not None
    assert re.match(reason, rows["s41"]["reason"])


@pytest.mark.parametrize("answer", [None, [], 7, "masks", iter(())])
def test_an_answer_that_is_no_list_of_masks_is_the_images_reason(
    make_image_set, drawn, tmp_path, manifest_of, answer
):
    class Empty(Failing):
        def segment(self, images, category_names):
            return answer

    images = make_image_set({"a": drawn("disc")[0], "b": drawn("disc")[0]})
    build_pool(images, tmp_path / "pool", methods=[Empty(full)])
    reasons = [row["reason"] for row in manifest_of(tmp_path / "pool")]
    assert len(reasons) == 2
    assert all(reason.startswith("method: mine failed (") for reason in reasons)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_the_images_passes_through(images, tmp_path, error):
    with pytest.raises(error):
        build_pool(images, tmp_path / "pool", methods=[Failing(raising(error()))])


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(("fail", "what"), [
    (raising(ValueError("no weights")), r"ValueError: no weights"),
    (lambda image: None, "NoneType"),
    (lambda image: full(image) * np.float32(np.nan), "no numbers"),
])  # fmt: skip
def test_many_failures_in_a_row_end_the_run_and_cost_no_image_its_row(
    make_image_set, drawn, tmp_path, fail, what, batch_size
):
    samples = {"first": drawn("disc", side_px=40)[0]}
    samples |= {f"s{i}": drawn("disc", side_px=41)[0] for i in range(2 * N_IN_A_ROW)}
    images = make_image_set(samples)
    pool = tmp_path / "pool"
    with pytest.raises(
        SegmentationError, match=rf"'mine' failed on {N_IN_A_ROW} images in a row.*{what}"
    ):
        build_pool(images, pool, methods=[Failing(fail)], batch_size=batch_size, filters=())
    # Mended, the same run keeps them all.
    summary = build_pool(images, pool, methods=[Failing(full)], batch_size=batch_size, filters=())
    assert (summary.n_kept, summary.n_dropped) == (2 * N_IN_A_ROW + 1, 0)


def test_failures_that_are_not_in_a_row_do_not_end_the_run(make_image_set, drawn, tmp_path):
    samples = {f"s{i}": drawn("disc", side_px=40 + i % 2)[0] for i in range(3 * N_IN_A_ROW)}
    pool = tmp_path / "pool"
    summary = build_pool(
        make_image_set(samples), pool, methods=[Failing(raising(ValueError("odd")))], batch_size=7
    )
    assert summary.dropped_by_reason == {"method": 15}
    assert summary.n_kept == 15


def test_a_reason_is_one_short_line_of_plain_text(make_image_set, drawn, tmp_path, manifest_of):
    images = make_image_set({"a": drawn("disc", side_px=41)[0]})
    error = ValueError("several\nlines \ud800 of " + "text " * 1000)
    build_pool(images, tmp_path / "pool", methods=[Failing(raising(error))])
    (row,) = manifest_of(tmp_path / "pool")
    assert row["reason"].startswith("method: mine failed (ValueError: several lines ")
    assert len(row["reason"]) < 400
    assert "\n" not in row["reason"]
    json.dumps(row, ensure_ascii=False).encode()
