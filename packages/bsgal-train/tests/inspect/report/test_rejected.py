"""Reports of runs that judge by evidence."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.cli import main
from bsgal_train.engine.run import train
from bsgal_train.inspect.report import run_report
from bsgal_train.inspect.report.real_objects import real_objects
from bsgal_train.inspect.report.rejected import rejected_by_evidence
from bsgal_train.inspect.run_evidence import run_evidence
from bsgal_train.recipe import Recipe


@pytest.fixture(scope="module")
def judged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture
def judged(tiny_recipe: Recipe, judged_folder: Path) -> Path:
    """Return a finished run with rejected instances."""
    recipe = tiny_recipe.override(
        "data.val_json=",
        "schedule.n_steps=8",
        "paste.max_instances=6",
        "selection.mode=instance",
        # Of a handful of real objects no more can be said.
        "selection.alpha=0.3",
        "selection.min_looks=1",
    )
    # From the second time on, this only sums the finished run up again.
    train(recipe, judged_folder)
    return judged_folder


def colour_of(png: bytes) -> tuple[int, ...]:
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
    return tuple(middle.tolist())


def test_every_rejected_instance_comes_with_what_spoke_against_it(judged: Path) -> None:
    table = run_evidence(judged)
    rejected = {
        name for name, verdict in zip(table.ids, table.verdicts, strict=True) if verdict == "reject"
    }
    assert rejected, "the run must reject something, or nothing is tested"

    found = rejected_by_evidence(judged, 18)

    assert {one.instance_id for one in found.shown} == rejected
    assert (found.n_instances, found.n_rejected) == (4, len(rejected))
    assert [one.p_value for one in found.shown] == sorted(one.p_value for one in found.shown)
    for one in found.shown:
        assert one.p_value <= 0.3
        assert one.n_looks >= 1
        assert re.search(r"than \d.* % of real ", one.against[0])
        real = {"red box": (220, 30, 30), "green box": (30, 200, 30)}[one.category]
        assert one.real_pngs
        assert {colour_of(png) for png in one.real_pngs} == {real}


def test_no_more_are_shown_than_asked_for(judged: Path) -> None:
    found = rejected_by_evidence(judged, 0)
    assert found.shown == []
    assert found.n_rejected > 0


def test_the_page_says_what_spoke_against_them(judged: Path) -> None:
    assert main(["report", str(judged)]) == 0

    page = (judged / "report.html").read_text(encoding="utf-8")
    assert "Rejected, and why" in page
    assert re.search(r"<li>.* than \d.* % of real ", page)
    assert 'alt="real ' in page
    assert "Rejected at least once" not in page


def test_without_a_checkpoint_the_log_alone_is_shown(judged: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(judged, run)
    shutil.rmtree(run / "checkpoints")

    report = run_report(run)

    assert report.rejections is None
    assert report.worst_rejected
    assert report.score_name == "p-value"
    assert any("no checkpoint" in note for note in report.notes)


def test_real_objects_that_cannot_be_read_are_left_out(tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_data, tmp_path, dirs_exist_ok=True)
    annotations = LvisAnnotations.load(tmp_path / "train.json", tmp_path)
    images = annotations.image_indices_of_class[0].tolist()
    assert len(images) >= 2
    before = real_objects(annotations, 0, 100)
    annotations.images[images[0]].path.write_bytes(b"no image")

    assert len(real_objects(annotations, 0, 100)) == len(before) - 1
    assert len(real_objects(annotations, 0, 1)) == 1
