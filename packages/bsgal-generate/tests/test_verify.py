from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bsgal_generate import GenerationPlan, ImagePipeline, ImageSet, generate, verify
from bsgal_generate.errors import ConfigChangedError, ImageSetError

MakeStub = Callable[..., tuple[ImagePipeline, Any]]
MakePlan = Callable[..., GenerationPlan]


@pytest.fixture
def image_set(make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path) -> ImageSet:
    fault = make_stub(fault=lambda prompt, seed: "blank" if seed % 3 == 0 else None)[0]
    return generate(make_plan(), fault, tmp_path)


def test_unchanged_set_has_no_differences(image_set: ImageSet, make_stub: MakeStub) -> None:
    report = verify(image_set, make_stub()[0], n_rows=100, batch_size=5)
    assert report.grey_level_differences == {r.sample_id: 0 for r in image_set if r.file}
    assert (report.largest_difference, report.damaged) == (0, {})


def test_choice_is_seeded(image_set: ImageSet, make_stub: MakeStub) -> None:
    pipeline, _ = make_stub()
    first = verify(image_set, pipeline, n_rows=4, seed=1)
    assert len(first.grey_level_differences) == 4
    assert first == verify(image_set, pipeline, n_rows=4, seed=1, batch_size=1)
    assert first != verify(image_set, pipeline, n_rows=4, seed=2)


def test_largest_difference_is_reported(image_set: ImageSet, make_stub: MakeStub) -> None:
    pipeline, stub = make_stub()
    plain = type(stub).__call__

    class Shifted(type(stub)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = plain(self, *args, **kwargs)
            output.images = np.clip(output.images + 5 / 255, 0, 1)
            return output

    pipeline.pipeline = Shifted()
    assert verify(image_set, pipeline, n_rows=12).largest_difference == 5


def test_damaged_file_is_named(image_set: ImageSet, make_stub: MakeStub) -> None:
    row = next(row for row in image_set if row.file)
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(image_set.root / str(row.file))
    report = verify(image_set, make_stub()[0], n_rows=100)
    assert list(report.damaged) == [row.sample_id]
    assert row.sample_id not in report.grey_level_differences


def test_other_weights_or_scheduler_are_refused(image_set: ImageSet, make_stub: MakeStub) -> None:
    pipeline, stub = make_stub()
    stub.scheduler = type("Other", (), {"config": {}})()
    with pytest.raises(ConfigChangedError, match=r"drawn with SimpleNamespace, .* has Other"):
        verify(image_set, pipeline)
    pipeline.weight_hash = "sha256:0"
    with pytest.raises(ConfigChangedError, match="load the same weights as float32"):
        verify(image_set, pipeline)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model", "lacks 'model.weight_hash'"),
        ("config.pipeline", "lacks 'config.pipeline.scheduler.class'"),
        ("config.sampling", "lacks 'config.sampling'"),
    ],
)
def test_setting_that_the_meta_file_lacks_is_named(
    name: str, message: str, image_set: ImageSet, make_stub: MakeStub
) -> None:
    place = image_set.meta
    *outer, last = name.split(".")
    for key in outer:
        place = place[key]
    del place[last]
    with pytest.raises(ImageSetError, match=rf"meta\.json {message}"):
        verify(image_set, make_stub()[0])


def test_setting_of_a_later_version_is_refused(image_set: ImageSet, make_stub: MakeStub) -> None:
    image_set.meta["config"]["sampling"]["eta"] = 1
    with pytest.raises(ConfigChangedError, match="this version does not know: eta"):
        verify(image_set, make_stub()[0])


def test_set_without_images_is_an_error(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    pipeline, _ = make_stub(fault=lambda prompt, seed: "blank")
    image_set = generate(make_plan(1, 1), pipeline, tmp_path / "empty")
    with pytest.raises(ImageSetError, match="has no images to verify"):
        verify(image_set, pipeline)
